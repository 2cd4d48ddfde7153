"""The least versions that setup.py allows give the goldens, too."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDENS = ["tests/test_pipeline.py", "tests/models/test_unet.py", "tests/test_lora.py"]


def lowest():
    """setup.py's requirements, each at its least version, and the extra for adapters."""
    call = next(
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    given = {word.arg: word.value for word in call.keywords}
    ranges = ast.literal_eval(given["install_requires"])
    ranges += ast.literal_eval(given["extras_require"])["lora"]
    return [re.sub(r">=([^,]+).*", r"==\1", text) for text in ranges]


def test_every_requirement_has_a_least_version():
    assert len(lowest()) > 10
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+", text) for text in lowest())


@pytest.mark.slow
def test_the_least_versions_give_the_goldens(tmp_path):
    """DIFFEWS_LOWEST names an environment that has them already."""
    python = Path(os.environ.get("DIFFEWS_LOWEST", tmp_path / "lowest")) / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        words = [python, "-m", "pip", "install", "-q", "pytest", *lowest()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "NameResolutionError" in done.stderr or "NewConnectionError" in done.stderr:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr[-2000:]

    # what is installed is what is asked for
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=freeze"], text=True)
    versions = dict(line.split("==") for line in listed.split())
    for name, _, version in (text.partition("==") for text in lowest()):
        assert (versions[name] + ".0").startswith(version), (name, versions[name])

    words = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *GOLDENS]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
