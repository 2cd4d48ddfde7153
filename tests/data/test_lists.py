"""Lists of images from a folder: JSON or the published pickles, in which nothing can run."""

import json
import pickle

import pytest

from diffews import InputError
from diffews.data.lists import check_names, read_class_lists, read_plain

pytest_plugins = ("benchmark_fixtures",)

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


# ---- names that lead elsewhere ----

ELSEWHERE = ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "..", "", ".", "a/"]


@pytest.mark.parametrize("name", [*ELSEWHERE, "a\0b", "\ud800", "x" * 999])
def test_a_name_that_is_no_file_of_the_folder_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="here: the name"):
        check_names(["a.jpg", name], "here")
    (tmp_path / "fold0.json").write_text(json.dumps({0: ["a.jpg", name]}))
    with pytest.raises(InputError, match=r"fold0.json: the name"):
        read(tmp_path)


def test_names_of_files_in_folders_are_taken():
    check_names(["a.jpg", "a/b.jpg", "a..b", "...jpg", ".hidden", "ä 1.png", "val2014/x"], "here")


@pytest.mark.parametrize("name", ["../secret", "/secret"])
def test_no_list_of_a_benchmark_leads_out_of_its_folder(name, own_bench, refused_list, change):
    lists = own_bench("VOC2012") / "splits" / "val" / "fold0.txt"
    lists.parent.mkdir(parents=True, exist_ok=True)
    lists.write_text(f"{name}__01\n")
    assert f"{lists}: the name {name!r}" in refused_list("pascal5i", lists.parents[3])

    lists = own_bench("FSS-1000") / "splits" / "test.txt"
    lists.write_text(f"{name}\n")
    assert f"{lists}: the name {name!r}" in refused_list("fss1000", lists.parents[2])

    table = own_bench("LVIS") / "lvis_val.pkl"
    change(table, lambda content: next(iter(content.values())).update({name: {}}))
    assert f"{table}: the name {name!r}" in refused_list("lvis92i", table.parents[1])
