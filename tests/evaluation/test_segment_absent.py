"""`segment` with the shipped head: which pictures hold the class, and which of five classes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from diffews.runtime.files import CHECKOUT
from diffews.tools.shapes import CLASS_NAMES, make_scene

FOLD = 1
WEIGHT = CHECKOUT / "weight" / "tiny" / f"shapes_fold{FOLD}"
CLASS = 25  # of the fold's novel ones, as all c with c % 4 == FOLD
SEED = 20_000  # of scenes that no benchmark holds


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """40 pictures, every fourth of which holds CLASS, and a support with its mask."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "query").mkdir()
    for number in range(41):
        draws = np.random.default_rng([SEED, number])
        others = [c for c in range(80) if c % 20 != CLASS % 20]
        classes = [int(c) for c in draws.choice(others, 2, replace=False)]
        if number % 4 == 0:
            classes[0] = CLASS
        scene = make_scene(draws, classes)
        if number == 40:
            Image.fromarray(scene.image).save(folder / "support.png")
            mask = (scene.classes == CLASS + 1).astype(np.uint8) * 255
            Image.fromarray(mask).save(folder / "mask.png")
        else:
            Image.fromarray(scene.image).save(folder / "query" / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def words(album):
    return [
        "segment", f"weight={WEIGHT}", f"support={album / 'support.png'}",
        f"mask={album / 'mask.png'}", f"query={album / 'query'}", "threads=1", "batch=10",
    ]  # fmt: skip


def rows(out):
    with (out / "presence.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_segment_finds_the_ten_of_forty_that_hold_the_class(album, words, run, tmp_path):
    out = tmp_path / "out"
    assert run(*words, f"out={out}").code == 0
    listed = rows(out)
    assert len(listed) == 40 and list(listed[0]) == ["picture", "class", "presence", "area"]

    # the ten surest are the ten; of the thirty others 5 % may pass the gate (docs/presence.md)
    with_class = set(range(0, 40, 4))
    surest = sorted(listed, key=lambda row: -float(row["presence"]))
    assert {int(row["picture"][:2]) for row in surest[:10]} == with_class
    passed = {int(row["picture"][:2]) for row in listed if float(row["presence"]) >= 0.5}
    assert with_class <= passed and len(passed - with_class) <= 3

    # where it is not, the mask is empty; the list says how large the others are
    for row in listed:
        mask = np.asarray(Image.open(out / f"{row['picture'][:2]}_mask.png")) > 0
        assert mask.mean() == pytest.approx(float(row["area"]), abs=1e-6)
        assert mask.any() == (float(row["presence"]) >= 0.5)

    # what is done is not done again, and stays listed; a new picture joins
    (out / "04_mask.png").unlink()
    before = {row["picture"]: row for row in listed}
    assert "wrote 1 mask" in run(*words, f"out={out}").out
    assert {row["picture"]: row for row in rows(out)} == before
    two = f"query={album / 'query' / '00.png'},{album / 'query' / '01.png'}"
    assert "wrote 2" in run(*words, two, f"out={out}", "min_presence=0.9").out  # another gate


def test_without_a_gate_or_a_head_masks_are_as_before(album, words, run, refused, tmp_path):
    words = [*words, f"query={album / 'query' / '00.png'},{album / 'query' / '01.png'}"]
    masks = {}
    for name, word in (("ungated", "min_presence=0"), ("off", "presence=off")):
        out = tmp_path / name
        assert run(*words, f"out={out}", word).code == 0
        masks[name] = [np.asarray(Image.open(out / f"0{n}_mask.png")) for n in (0, 1)]
        assert (out / "presence.csv").exists() == (name == "ungated")
    assert all(np.array_equal(*pair) for pair in zip(*masks.values(), strict=True))
    assert masks["off"][1].any()  # painted into a query without the class
    error = refused(*words, f"out={tmp_path / 'no'}", "presence=off", "min_presence=0.5")
    assert "min_presence=0.5" in error and not (tmp_path / "no").exists()


def test_of_five_classes_a_label_map_holds_the_two_that_are_there(album, run, tmp_path):
    classes, paths = [1, 25, 49, 73, 37], []
    for number, class_id in enumerate(classes):
        scene = make_scene(np.random.default_rng([SEED, 100 + number]), [class_id])
        image, mask = tmp_path / f"{class_id}.png", tmp_path / f"{class_id}_mask.png"
        Image.fromarray(scene.image).save(image)
        Image.fromarray((scene.classes > 0).astype(np.uint8) * 255).save(mask)
        paths.append((image, mask))
    scene = make_scene(np.random.default_rng([SEED, 200]), [25, 73])
    Image.fromarray(scene.image).save(tmp_path / "asked.png")

    images, masks = (",".join(map(str, part)) for part in zip(*paths, strict=True))
    outcome = run("segment", f"weight={WEIGHT}", f"support={images}", f"mask={masks}",
                  f"classes={','.join(CLASS_NAMES[c].replace(' ', '-') for c in classes)}",
                  f"query={tmp_path / 'asked.png'}", f"out={tmp_path / 'out'}")  # fmt: skip
    assert outcome.code == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "asked_labels.png"))
    assert set(np.unique(labels)) == {0, 2, 4}
    for number in (2, 4):
        truth, found = scene.classes == classes[number - 1] + 1, labels == number
        assert (truth & found).sum() / (truth | found).sum() > 0.6
    sure = {row["class"]: float(row["presence"]) for row in rows(tmp_path / "out")}
    assert [share >= 0.5 for share in sure.values()] == [False, True, False, True, False]


def test_a_list_of_something_else_is_not_written_over(album, words, refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "presence.csv").write_text("name,age\nme,7\n")
    assert "is no list of presence" in refused(*words, f"out={out}")
    assert (out / "presence.csv").read_text() == "name,age\nme,7\n"


def test_the_shipped_heads_saw_no_novel_class_and_fit_their_weights():
    for folder in sorted(WEIGHT.parent.glob("*/presence")):
        fold = int(folder.parent.name[-1])
        seen = json.loads((folder / "config.json").read_text())["seen"]
        assert len(seen) == 60
        assert {CLASS_NAMES.index(name) % 4 for name in seen} == {0, 1, 2, 3} - {fold}
