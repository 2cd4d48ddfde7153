"""What the benchmark tests share: golden folders, ways to damage them, and refusals."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Path:
    """Golden folders VOC2012, FSS-1000, LVIS, PACO-Part, Pascal-Part; never written to."""
    folder = tmp_path_factory.mktemp("bench")
    with zipfile.ZipFile(DATA / "goldens_bench.zip") as archive:
        archive.extractall(folder)
    return folder / "bench_mini"


@pytest.fixture
def own_bench(bench, tmp_path) -> Callable[[str], Path]:
    """own_bench("LVIS"): a copy that a test may damage; its parent is what `data=` takes."""
    return lambda name: shutil.copytree(bench / name, tmp_path / "own" / name)


@pytest.fixture(scope="session")
def change() -> Callable[[Path, Callable[[Any], Any]], None]:
    """change(file, edit): edits what a pickle or JSON file holds; `edit` changes it in place."""

    def call(file: Path, edit: Callable[[Any], Any]) -> None:
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            edit(content)
            file.write_text(json.dumps(content))
        else:
            content = pickle.loads(file.read_bytes())
            edit(content)
            file.write_bytes(pickle.dumps(content))

    return call


@pytest.fixture(scope="session")
def to_json() -> Callable[[Path], Path]:
    """to_json(file): puts a JSON file of the same content in the place of a pickle."""

    def call(file: Path) -> Path:
        written = file.with_suffix(".json")
        written.write_text(
            json.dumps(pickle.loads(file.read_bytes()), default=bytes.decode)
        )  # counts are bytes
        file.unlink()
        return written

    return call


@pytest.fixture(scope="session")
def bench_words(weight, base) -> Callable[..., list[str]]:
    """bench_words(benchmark, data): the command line of two episodes at 64 px, without `out`."""

    def words(benchmark: str, data: Path, *more: object) -> list[str]:
        keys = ["fold=0", "image_size=64", "workers=0", "episodes=2"]
        where = [f"weight={weight}", f"base={base}", f"data={data}", f"benchmark={benchmark}"]
        return ["eval", *where, *keys, *map(str, more)]

    return words


@pytest.fixture
def refused_list(refused, tmp_path) -> Callable[..., str]:
    """refused_list(benchmark, data): the refusal of lists that give no episodes; leaves no file."""

    def call(benchmark: str, data: Path, *words: object) -> str:
        file = tmp_path / "list.json"
        message = refused(
            "episodes", f"benchmark={benchmark}", f"data={data}", "fold=0", f"save={file}", *words
        )
        assert not file.exists()
        return message

    return call


@pytest.fixture
def refused_eval(refused, bench_words, tmp_path) -> Callable[..., str]:
    """refused_eval(benchmark, data): the refusal of lists or pictures; leaves no folder."""

    def call(benchmark: str, data: Path, *words: object) -> str:
        out = tmp_path / "bad"
        message = refused(*bench_words(benchmark, data, f"out={out}", *words))
        assert not out.exists()
        return message

    return call
