"""Lists of images from a folder: JSON or the published pickles, in which nothing can run."""

import json
import pickle

import pytest

from diffews import InputError
from diffews.data.lists import read_class_lists, read_plain

LISTS = {0: ["a.jpg", "b.jpg"], 4: ["c.jpg"]}
BUILTIN = {0: ["built in"]}


def read(folder, splits="auto"):
    return read_class_lists(folder, 0, splits, lambda: BUILTIN)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_plain_lists_is_read(tmp_path, protocol):
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps(LISTS, protocol))
    assert read(tmp_path) == LISTS


def test_json_keys_are_class_ids(tmp_path):
    (tmp_path / "fold0.json").write_text(json.dumps(LISTS))
    assert read(tmp_path) == LISTS


def test_json_comes_before_the_pickle(tmp_path):
    (tmp_path / "fold0.json").write_text(json.dumps({0: ["json"]}))
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps(LISTS))
    assert read(tmp_path) == {0: ["json"]}


def test_the_folders_lists_are_taken_unless_the_built_in_ones_are_asked_for(tmp_path):
    assert read(tmp_path) == BUILTIN
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps(LISTS))
    assert read(tmp_path, "folder") == LISTS
    assert read(tmp_path, "builtin") == BUILTIN


def test_insisting_on_the_folder_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"splits=folder.*fold0.json.*fold0.pkl"):
        read(tmp_path, "folder")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["whole", "value", "key"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    runs_code, tmp_path, protocol, where
):
    marker, file = tmp_path / "it ran", tmp_path / "fold0.pkl"
    bomb = runs_code(marker)
    content = pickle.dumps(
        {"whole": bomb, "value": {0: [bomb]}, "key": {bomb: []}}[where], protocol
    )
    pickle.loads(content)
    assert marker.exists()  # the bomb is live ...
    marker.unlink()

    file.write_bytes(content)
    with pytest.raises(InputError, match=r"fold0.pkl is refused.*open, which could run code"):
        read(tmp_path)
    assert not marker.exists()  # ... and did not go off here


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(LISTS)[:-5],
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0 by hand
        b"(S'true'\nios\nsystem\n.",  # the INST opcode
        b"Pid\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
    ],
)
def test_damaged_and_hand_made_pickles_are_refused(tmp_path, content):
    (tmp_path / "fold0.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"fold0.pkl is refused.*only plain lists"):
        read_plain(tmp_path / "fold0.pkl")


@pytest.mark.parametrize(
    "content", [[1, 2], {0: "a.jpg"}, {0: [1]}, {"cat": ["a.jpg"]}, {-1: ["a.jpg"]}, None]
)
def test_other_content_than_lists_by_class_is_refused(tmp_path, content):
    for file, data in (
        ("fold0.json", json.dumps(content).encode()),
        ("fold0.pkl", pickle.dumps(content)),
    ):
        (tmp_path / file).write_bytes(data)
        with pytest.raises(InputError, match=rf"{file}.*image names"):
            read(tmp_path)
        (tmp_path / file).unlink()


def test_broken_json_is_refused(tmp_path):
    (tmp_path / "fold0.json").write_text('{"0": ["a.jpg"')
    with pytest.raises(InputError, match="fold0.json cannot be read"):
        read(tmp_path)


def test_built_in_lists_are_refused_where_there_are_none(refused, tmp_path):
    words = ("episodes", "benchmark=folder", f"data={tmp_path}", "splits=builtin")
    assert "splits=builtin" in refused(*words)
