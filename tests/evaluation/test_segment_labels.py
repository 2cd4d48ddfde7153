"""`diffews segment format=...`: labels of all its masks, also of an earlier, interrupted run."""

import contextlib
import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from diffews import load_pipeline
from diffews.cli.main import main
from diffews.data import load_benchmark
from diffews.images.masks import resize_mask
from diffews.runtime.files import CHECKOUT
from diffews.tools.shapes import make_scene

LABELS = "format=coco,yolo,label_studio,labelme,palette,cutout"
FILES = ("annotations.coco.json", "data.yaml", "label_studio.json", "label_studio.xml")


@pytest.fixture(scope="module")
def made(picture, square_mask, weight, base, tmp_path_factory):
    """A support, a folder of two queries, one in a sub-folder, and their masks in `out`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos" / "deep").mkdir(parents=True)
    picture(1, 80, 60).save(folder / "support.png")
    Image.fromarray(square_mask(80, 60)).save(folder / "mask.png")
    picture(2, 90, 50).save(folder / "photos" / "one.png")
    picture(3, 40, 70).save(folder / "photos" / "deep" / "two.jpg", quality=95)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*make_words(weight, base, folder), "format=scores"]) == 0
    return folder


def make_words(weight, base, folder):
    words = f"segment weight={weight} base={base} image_size=64 threads=1 out={folder / 'out'}"
    words += f" support={folder / 'support.png'} mask={folder / 'mask.png'} classes=owl"
    return [*words.split(), f"query={folder / 'photos'}", "recursive=true"]


@pytest.fixture
def words(made, weight, base, tmp_path):
    """The command line in a copy of that folder, where the masks are done already."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return make_words(weight, base, tmp_path)


@pytest.fixture
def photos(words, tmp_path):
    return tmp_path / "photos"


def read(file):
    with Image.open(file) as image:
        return np.asarray(image)


def read_coco(out):
    """File names and masks of annotations.coco.json."""
    coco = COCO(out / "annotations.coco.json")
    found = {}
    for entry in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((entry["height"], entry["width"]), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[entry["id"]])):
            mask |= coco.annToMask(annotation) > 0
        found[entry["file_name"]] = mask
    return found


def test_every_format_is_written_beside_the_masks(run, words, photos, tmp_path):
    out = tmp_path / "out"
    outcome = run(*words, LABELS)
    assert outcome.code == 0 and "labels of 2 picture(s)" in outcome.out
    assert all((out / name).is_file() for name in FILES)
    for name in ("one", "deep/two"):
        places = f"labels/{name}.txt labelme/{name}.json palette/{name}.png cutouts/{name}.png"
        assert all((out / place).is_file() for place in places.split())
    masks = read_coco(out)
    assert np.array_equal(masks["one.png"], read(out / "one_mask.png") > 0)
    assert np.array_equal(masks["deep/two.jpg"], read(out / "deep" / "two_mask.png") > 0)
    categories = json.loads((out / FILES[0]).read_text())["categories"]
    assert categories == [{"id": 1, "name": "owl"}]


def test_labels_of_an_interrupted_run_are_those_of_a_whole_one(run, words, photos, tmp_path):
    assert run(*words, LABELS).code == 0
    out = tmp_path / "out"
    whole = {file: (out / file).read_bytes() for file in FILES}

    # the first picture alone, no labels, and what a kill leaves
    other = f"out={tmp_path / 'other'}"
    assert "wrote 1 mask" in run(*words, other, f"query={photos / 'one.png'}").out
    (tmp_path / "other" / "labels").mkdir()
    (tmp_path / "other" / "labels" / ".one.txt.12.partial").write_text("0 0.")
    (tmp_path / "other" / ".annotations.coco.json.12.partial").write_text("{")
    assert "wrote 1 mask" in run(*words, other, LABELS).out
    again = {file: (tmp_path / "other" / file).read_bytes() for file in FILES}
    assert again == whole and not list((tmp_path / "other").rglob(".*"))


def test_more_formats_of_finished_masks_need_no_model(run, words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run(*words).code == 0
    masks = {file: file.stat().st_mtime_ns for file in out.rglob("*_mask.png")}
    from diffews.runtime import loading

    monkeypatch.setattr(loading, "open_pipeline", None)  # to load the model would be an error
    outcome = run(*words, "format=coco")
    assert outcome.code == 0 and "wrote 0 mask" in outcome.out and len(read_coco(out)) == 2
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*_mask.png")} == masks

    # labels that are not asked for are said to be old
    assert "annotations.coco.json" in run(*words, "format=palette").err


def test_labels_follow_a_mask_that_was_painted_over(run, words, photos, tmp_path):
    out = tmp_path / "out"
    assert run(*words, LABELS).code == 0
    painted = np.zeros((50, 90), np.uint8)
    painted[10:20, 30:70] = 255
    Image.fromarray(painted).save(out / "one_mask.png")
    Image.new("L", (7, 70)).save(out / "deep" / "two_mask.png")  # of no size that fits
    outcome = run(*words, LABELS)
    assert (
        outcome.code == 0 and "two_mask.png" in outcome.err and "not in the labels" in outcome.err
    )
    masks = read_coco(out)
    assert list(masks) == ["one.png"] and np.array_equal(masks["one.png"], painted > 0)


def test_several_classes_are_categories(run, words, tmp_path):
    support, mask = (f"{tmp_path / name}" for name in ("support.png", "mask.png"))
    pairs = [f"support={support},{support}", f"mask={mask},{mask}", "classes=owl,newt"]
    assert run(*words, *pairs, LABELS).code == 0
    out = tmp_path / "out"
    content = json.loads((out / FILES[0]).read_text())
    assert [entry["name"] for entry in content["categories"]] == ["owl", "newt"]
    labels = read(out / "one_labels.png")
    assert np.array_equal(read(out / "palette" / "one.png"), labels) and labels.any()


def test_scores_are_the_models_and_of_the_run_that_made_the_mask(
    run, words, photos, weight, base, tmp_path
):
    file = tmp_path / "out" / "scores" / "one.png"
    pipe = load_pipeline(weight, base)
    bank = pipe.encode_support(tmp_path / "support.png", tmp_path / "mask.png", image_size=64)
    scores = pipe(photos / "one.png", bank, image_size=64).scores[0]
    assert np.abs(read(file) / 65535 - scores).max() <= 0.5 / 65535 + 1e-7

    # scores of other settings are no longer those of the mask
    assert "wrote 2 mask" in run(*words, "threshold=0.5").out
    before = file.stat().st_mtime_ns
    assert "wrote 2 mask" in run(*words, "threshold=0.5", "format=scores").out
    assert file.stat().st_mtime_ns != before
    assert "wrote 0 mask" in run(*words, "threshold=0.5", "format=scores").out


def test_small_parts_are_left_out_aloud(run, words, tmp_path):
    outcome = run(*words, "format=coco", "least_area=100000")
    assert "of fewer than 100000 pixels" in outcome.err and "0 object(s)" in outcome.out
    content = json.loads((tmp_path / "out" / FILES[0]).read_text())
    assert content["annotations"] == [] and len(content["images"]) == 2
    assert read(tmp_path / "out" / "one_mask.png").any()


def test_label_files_of_other_pictures_are_said(run, words, photos):
    assert run(*words, "format=yolo").code == 0
    outcome = run(*words, "format=yolo", f"query={photos / 'one.png'}")
    assert "1 file(s) of pictures that are no query" in outcome.err


def test_folders_of_labels_among_the_queries_are_no_queries(run, words, photos, tmp_path):
    shutil.copytree(tmp_path / "out", photos, dirs_exist_ok=True)
    for _ in range(2):
        outcome = run(*words, f"out={photos}", LABELS)
        assert "wrote 0 mask" in outcome.out and "labels of 2 picture(s)" in outcome.out
    assert "a folder of labels" in outcome.err


def test_the_folder_benchmark_reads_masks_that_lie_beside_their_photos(words, photos, tmp_path):
    """A class folder of photos, whose masks `segment` wrote into it."""
    folder = shutil.copytree(photos, tmp_path / "data" / "owl")
    shutil.copytree(tmp_path / "out", folder, dirs_exist_ok=True)
    for file in (folder / "deep").iterdir():
        file.rename(folder / file.name)
    dataset = load_benchmark("folder", tmp_path / "data", novel=["owl"], episodes=3, image_size=64)
    for i in range(3):
        name = dataset[i].query_name.split("/")[1].split(".")[0]
        expected = resize_mask((read(folder / f"{name}_mask.png") > 0).astype(np.uint8), 64)
        assert np.array_equal(np.asarray(dataset[i].query_mask), expected)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["format=coc"], ["format='coc'", "'coco'"]),
        (["least_area=0"], ["least_area=0", "1"]),
        (["format=scores", "classes=owl,newt"], ["format=scores", "2"]),
    ],
)
def test_what_cannot_be_written_is_refused(refused, words, tmp_path, more, parts):
    support, mask = (f"{tmp_path / name}" for name in ("support.png", "mask.png"))
    pairs = [f"support={support},{support}", f"mask={mask},{mask}", "classes=owl,owl"]
    message = refused(*words, *pairs, f"out={tmp_path / 'none'}", *more)
    assert all(part in message for part in parts)
    assert not (tmp_path / "none").exists()


def test_a_photo_that_was_given_is_not_written_over_by_a_label(refused, words, picture, tmp_path):
    (tmp_path / "out" / "palette").mkdir(parents=True)
    photo = tmp_path / "out" / "palette" / "photo.png"
    picture(4).save(photo)
    before = photo.read_bytes()
    assert str(photo) in refused(*words, f"query={photo}", "format=palette")
    assert photo.read_bytes() == before


def test_the_score_is_the_presence_of_that_mask(run, tmp_path):
    """The shipped weights have a head; a picture with the class, and one without."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    scenes = {"with": [25, 3], "without": [12, 3], "support": [25, 7]}
    for number, (name, classes) in enumerate(scenes.items()):
        scene = make_scene(np.random.default_rng([31, number]), classes)
        Image.fromarray(scene.image).save(folder / f"{name}.png")
        mask = (scene.classes == 26).astype(np.uint8) * 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (folder / "support.png").rename(tmp_path / "support.png")
    out, weight = tmp_path / "out", CHECKOUT / "weight" / "tiny" / "shapes_fold1"
    words = ["segment", f"weight={weight}", f"support={tmp_path / 'support.png'}", "threads=1"]
    words += [f"mask={tmp_path / 'mask.png'}", f"query={folder}", f"out={out}", "min_presence=0"]
    assert run(*words, "format=coco,label_studio").code == 0

    with (out / "presence.csv").open(newline="") as file:
        presence = {row["picture"]: float(row["presence"]) for row in csv.DictReader(file)}
    content = json.loads((out / FILES[0]).read_text())
    places = {entry["id"]: entry["file_name"] for entry in content["images"]}
    assert {places[a["image_id"]] for a in content["annotations"]} == set(presence)
    assert all(a["score"] == presence[places[a["image_id"]]] for a in content["annotations"])
    assert presence["with.png"] > 0.5 > presence["without.png"]
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [task["predictions"][0]["score"] for task in tasks] == list(presence.values())

    # a mask that somebody painted has no score
    Image.fromarray(mask).save(out / "with_mask.png")
    assert run(*words, "format=coco").code == 0
    annotations = json.loads((out / FILES[0]).read_text())["annotations"]
    assert [("score" in a) for a in annotations if places[a["image_id"]] == "with.png"] == [False]
