"""The shell scripts: the reference's names are thin calls of eval.sh; last comes the mIoU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffews

SCRIPTS = Path(diffews.__file__).parent.parent / "scripts"


def bash(script, *words, cwd, python=sys.executable):
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *map(str, words)],
        text=True,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("script", "words", "called"),
    [
        (
            "eval.sh",
            ["weight/coco_fold0", "shots=5", "fold=2"],
            "weight=weight/coco_fold0 shots=5 fold=2",
        ),
        (
            "eval_coco2014_rthres_1shot_nosample.sh",
            ["weight/coco_fold0"],
            "weight=weight/coco_fold0 shots=1",
        ),
        (
            "eval_coco2014_rthres_5shot_nosample.sh",
            ["weight/coco_fold0"],
            "weight=weight/coco_fold0 shots=5",
        ),
        (
            "eval_coco2014_rthres_1shot_nosample_fold0.sh",
            ["weight/incontext"],
            "weight=weight/incontext shots=1 fold=0",
        ),
        (
            "eval_coco2014_rthres_1shot_nosample_fold0.sh",
            ["weight/incontext", "fold=3", "out=my results"],
            "weight=weight/incontext shots=1 fold=0 fold=3 out=my results",
        ),
        (
            "eval_coco2014_rthres_1shot_nosample_fold.sh",
            ["weight/x", "2"],
            "weight=weight/x shots=1 fold=2",
        ),
    ],
)
def test_the_references_commands_call_eval(tmp_path, script, words, called):
    printed = bash(
        script, *words, cwd=tmp_path, python="echo"
    )  # in the place of python: prints what it is given
    assert printed.stdout == f"-m diffews eval {called}\n" and printed.returncode == 0


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("eval*.sh")))
def test_without_a_weight_dir_the_usage_is_shown(tmp_path, script):
    outcome = bash(script, cwd=tmp_path, python="echo")
    assert outcome.returncode != 0 and outcome.stdout == ""
    assert "usage: " in outcome.stderr and script in outcome.stderr


def test_the_reference_command_ends_with_the_miou(weight, base, coco, tmp_path):
    words = [weight, f"base={base}", f"data={coco}", "image_size=64", "episodes=2", "workers=0"]
    outcome = bash("eval_coco2014_rthres_1shot_nosample.sh", *words, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1].startswith("coco20i fold 0, 1-shot, 2 episodes: mIoU ")
    assert (tmp_path / "results" / "coco_fold0" / "coco20i_fold0_1shot" / "result.json").is_file()


def test_a_weight_dir_that_names_no_fold_is_refused_unless_the_script_names_one(
    own_weight, base, coco, tmp_path
):
    unnamed = own_weight.rename(own_weight.with_name("incontext"))
    outcome = bash("eval.sh", unnamed, f"base={base}", f"data={coco}", cwd=tmp_path)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert outcome.stderr.startswith("diffews: error: ") and "fold=N" in outcome.stderr
    outcome = bash(
        "eval_coco2014_rthres_1shot_nosample_fold.sh", unnamed, "4", f"base={base}", cwd=tmp_path
    )
    assert outcome.returncode == 2 and "fold=4" in outcome.stderr
