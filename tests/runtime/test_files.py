"""Files that are complete or not there at all, and folders that belong to one run."""

import json

import pytest

from diffews import InputError
from diffews.runtime.files import new_folder, open_run, versions, write_atomic


def test_a_file_is_written_with_the_folders_it_needs(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "file", "words")
    write_atomic(tmp_path / "a" / "b" / "file", b"other words")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"other words"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path, largest_file):
    write_atomic(tmp_path / "file", "old")
    with largest_file(50), pytest.raises(OSError, match="File too large"):
        write_atomic(tmp_path / "file", "new" * 100)
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "a" / "new") as folder:
        (folder / "file").write_text("words")
        assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "a" / "new" / "file").read_text() == "words"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_folder_that_fails_is_gone(tmp_path):
    with pytest.raises(InputError), new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("words")
        raise InputError("something is wrong")
    assert not any(tmp_path.iterdir())


def test_what_a_killed_process_left_of_a_folder_does_not_get_into_the_next(tmp_path):
    killed = new_folder(tmp_path / "new")
    (killed.__enter__() / "old").write_text("words")  # and no __exit__
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("words")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_belongs_to_the_run_that_opened_it(tmp_path):
    out = tmp_path / "a" / "run"
    open_run(out, {"shots": 1, "sizes": (1, 2)})
    assert json.loads((out / "run.json").read_text()) == {"shots": 1, "sizes": [1, 2]}
    (out / "something").write_text("words")
    open_run(out, {"shots": 1, "sizes": (1, 2)})
    with pytest.raises(InputError, match=r"shots: 1 there, 2 now"):
        open_run(out, {"shots": 2, "sizes": (1, 2)})
    with pytest.raises(InputError, match="sizes: .* there, None now"):
        open_run(out, {"shots": 1})


def test_hashes_are_shown_short(tmp_path):
    open_run(tmp_path, {"weight_sha256": "a" * 64})
    with pytest.raises(
        InputError, match=r"weight_sha256: aaaaaaaa\.\.\. there, bbbbbbbb\.\.\. now"
    ):
        open_run(tmp_path, {"weight_sha256": "b" * 64})


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match="not empty and holds no run"):
        open_run(tmp_path, {"shots": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_process_was_writing_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".run.json.77.partial").write_text("{")
    open_run(tmp_path, {"shots": 1})
    assert (tmp_path / "run.json").is_file()


def test_versions_name_what_results_depend_on():
    found = versions()
    assert {"diffews", "python", "torch", "diffusers", "numpy", "pillow"} <= set(found)
    assert all(found.values())
