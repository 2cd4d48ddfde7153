"""Own data: COCO files, class folders and detectron2's catalogue, from the file to masks."""

import json
import os
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from training_runs import SIDE, reset_accelerate

from diffews.data.benchmarks.detectron2 import from_catalogue
from diffews.data.registry import load_benchmark, open_benchmark

pytest_plugins = ("training_fixtures",)

NAMES = ("owl", "lynx", "newt", "crow", "toad")
WIDTH, HEIGHT = 40, 32


def square(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def square_pixels(left, top, side):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def run_lengths(mask):
    """Uncompressed run-length code, by hand."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def make_content():
    """Five classes, ids with gaps and out of order, four images of each; all codes, and crowds."""
    images, annotations = [], []
    for number in range(20):
        images.append(
            {"id": 70 + number, "file_name": f"set/{number}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        common = {"image_id": 70 + number, "category_id": 11 * (number % 5 + 1)}
        annotations.append(
            {**common, "id": 3 * number, "segmentation": [square(4, 4, 10), square(20, 12, 8)]}
        )
        if number % 2:
            code = run_lengths(square_pixels(10, 10, 12))
            annotations.append({**common, "id": 3 * number + 1, "segmentation": code, "iscrowd": 1})
        else:
            code = compressed(square_pixels(24, 2, 6))
            annotations.append({**common, "id": 3 * number + 1, "segmentation": code, "iscrowd": 0})
        other = {"image_id": 70 + number, "category_id": 11 * ((number + 1) % 5 + 1)}
        code = run_lengths(square_pixels(0, 20, 9))
        annotations.append(
            {**other, "id": 3 * number + 2, "segmentation": code, "iscrowd": number % 2}
        )
    categories = [{"id": 11 * (k + 1), "name": name} for k, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


@pytest.fixture
def mine(tmp_path, picture):
    """A COCO-format file with its pictures; `words` say both."""
    photos, file, content = tmp_path / "photos", tmp_path / "my.json", make_content()
    (photos / "set").mkdir(parents=True)
    for number in range(20):
        picture(number, WIDTH, HEIGHT).save(photos / "set" / f"{number}.jpg")
    file.write_text(json.dumps(content))
    words = ["benchmark=coco_json", f"annotations={file}", f"images={photos}"]
    return SimpleNamespace(photos=photos, file=file, content=content, words=words)


def open_mine(mine, split="test", fold: int | None = 0, **options):
    return open_benchmark(
        "coco_json", "", fold, split, annotations=mine.file, images=mine.photos, **options
    )


@pytest.fixture
def zoo(tmp_path, picture):
    """A folder of classes with pictures and masks beside them."""
    root = tmp_path / "zoo"
    for k, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(3):
            picture(10 * k + number, WIDTH, HEIGHT).save(root / name / f"{number}.jpg")
            mask = square_pixels(4 + k, 6 + number, 16)
            Image.fromarray(mask * np.uint8(255 if number else 1)).save(
                root / name / f"{number}.png"
            )
    return root


# ---- classes ----


@pytest.mark.parametrize("fold", range(3))
def test_every_so_manieth_class_is_novel_in_the_order_of_the_category_ids(mine, fold):
    novel = open_mine(mine, fold=fold, folds=3)
    seen = [open_mine(mine, split, fold=fold, folds=3).class_ids for split in ("train", "val")]
    assert novel.class_ids == [c for c in range(5) if c % 3 == fold]
    assert seen[0] == seen[1] == [c for c in range(5) if c % 3 != fold]
    assert novel.class_names == dict(enumerate(NAMES))


def test_classes_can_be_named_instead(mine):
    assert open_mine(mine, novel=["newt", "owl"]).class_ids == [0, 2]
    assert open_mine(mine, "train", novel=["newt", "owl"]).class_ids == [1, 3, 4]


def test_without_a_fold_all_classes_are_trained_on(mine, zoo):
    assert open_mine(mine, "train", fold=None).class_ids == list(range(5))
    assert open_benchmark("folder", zoo, None, "train").class_ids == list(range(5))


def test_a_split_without_a_class_is_refused_by_its_numbers(mine):
    with pytest.raises(ValueError, match="test split: 5 classes, folds=8, fold=6"):
        open_mine(mine, fold=6, folds=8)
    with pytest.raises(ValueError, match="train split: 5 classes"):
        open_mine(mine, "train", fold=None, novel=NAMES)


@pytest.mark.parametrize(
    "words, named",
    [
        (["novel=lynks"], "novel=lynks is no class; did you mean 'lynx'?"),
        (["novel=owl,dodo"], "novel=dodo is no class"),
        (["fold=4"], "fold=4: with folds=4 there are the folds 0 to 3"),
        (["fold=2", "folds=2"], "fold=2: with folds=2 there are the folds 0 to 1"),
        (["folds=0"], "folds=0 must be at least 1"),
        (["dataset=mine"], "dataset= is no key of benchmark="),
    ],
)
def test_classes_that_are_not_there_are_refused(mine, zoo, refused, words, named):
    assert named in refused("episodes", *mine.words, *words)
    assert named in refused("episodes", "benchmark=folder", f"data={zoo}", *words)


# ---- coco_json ----


def test_a_class_lists_the_pictures_that_hold_more_of_it_than_crowd(mine):
    images = open_mine(mine, "train", fold=None).images
    for class_id in range(5):
        category = 11 * (class_id + 1)
        ids = {a["image_id"] for a in mine.content["annotations"]
               if a["category_id"] == category and not a.get("iscrowd")}  # fmt: skip
        listed = [i["file_name"] for i in mine.content["images"] if i["id"] in ids]
        assert [sample.name for sample in images[class_id]] == listed and len(listed) == 6


def test_masks_are_the_union_of_polygons_and_codes_and_crowd_is_ignored(mine):
    benchmark = open_mine(mine, "train", fold=None)
    polygons = square_pixels(4, 4, 10) | square_pixels(20, 12, 8)
    for number in range(20):
        sample = next(s for s in benchmark.images[number % 5] if s.name == f"set/{number}.jpg")
        picture = benchmark.decode(sample, number % 5)
        crowd = square_pixels(10, 10, 12)
        if number % 2:
            np.testing.assert_array_equal(picture.mask, polygons)
            np.testing.assert_array_equal(picture.ignore, crowd & (1 - polygons))
        else:
            np.testing.assert_array_equal(picture.mask, polygons | square_pixels(24, 2, 6))
            assert not picture.ignore.any()
        with Image.open(mine.photos / sample.name) as image:
            np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(image))


def test_a_picture_knows_all_its_classes(mine):
    benchmark = open_mine(mine)
    assert [benchmark.classes_in(s) for s in benchmark.images[0][:2]] == [[0, 1], [0, 4]]


def test_episodes_are_drawn_once_and_decode(mine):
    episodes = load_benchmark(
        "coco_json", "", 1, shots=2, annotations=mine.file, images=mine.photos, image_size=SIDE
    )
    assert len(episodes) == 1000 and {episode.class_id for episode in episodes.episodes} == {1}
    again = load_benchmark(
        "coco_json", "", 1, shots=2, annotations=mine.file, images=mine.photos, image_size=SIDE
    )
    assert again.episodes.sha256 == episodes.episodes.sha256
    decoded = episodes[0]
    assert decoded.query_rgb.shape == (3, SIDE, SIDE) and decoded.support_masks.shape == (
        2,
        SIDE,
        SIDE,
    )
    assert all(
        mask.any() and not mask.all() for mask in (decoded.query_mask, *decoded.support_masks)
    )
    for episode in episodes.episodes:
        assert episode.query not in episode.supports


def test_annotations_and_images_belong_together(mine, refused):
    for left_out in (1, 2):
        words = [word for i, word in enumerate(mine.words) if i != left_out]
        assert "needs annotations=FILE and images=DIR" in refused("episodes", *words)
    assert "no such folder" in refused("episodes", *mine.words, "images=nowhere")
    assert "nowhere.json does not exist" in refused(
        "episodes", *mine.words, "annotations=nowhere.json"
    )


@pytest.fixture
def refused_mine(mine, refused, tiny_base, tmp_path):
    """refused_mine(edit): how `train` refuses an edited file; it leaves nothing behind."""

    def call(edit, *words, command="train"):
        edit(mine.content)
        mine.file.write_text(json.dumps(mine.content))
        out = tmp_path / "out"
        keys = (
            [f"base={tiny_base}", f"out={out}", f"image_size={SIDE}", "steps=1"]
            if command == "train"
            else []
        )
        message = refused(command, *mine.words, *keys, *words)
        assert not out.exists()
        return message

    return call


def put(part, index, **values):
    return lambda content: content[part][index].update(values)


def drop(part, index, key):
    return lambda content: content[part][index].pop(key)


BAD = {
    "no annotations": (lambda c: c.pop("annotations"), "lacks the list 'annotations'"),
    "annotations as a dictionary": (
        lambda c: c.update(annotations={}),
        "lacks the list 'annotations'",
    ),
    "an annotation that is a number": (
        lambda c: c["annotations"].append(7),
        "annotations[60] lacks the key 'id'",
    ),
    "a category without a name": (
        drop("categories", 2, "name"),
        "categories[2] lacks the key 'name'",
    ),
    "a picture without a file": (
        drop("images", 2, "file_name"),
        "images[2] lacks the key 'file_name'",
    ),
    "a picture without a size": (drop("images", 2, "height"), "images[2] lacks the key 'height'"),
    "a size in words": (
        put("images", 2, height="large"),
        "image 72 has the width and height 40 x large",
    ),
    "no segmentation": (
        drop("annotations", 5, "segmentation"),
        "annotations[5] lacks the key 'segmentation'",
    ),
    "a dangling picture": (
        put("annotations", 5, image_id=5),
        "annotation 5 has the image_id 5, which is not there",
    ),
    "a dangling class": (
        put("annotations", 5, category_id=5),
        "annotation 5 has the category_id 5, which is not",
    ),
    "a picture id twice": (put("images", 1, id=70), "the id 70 stands twice in images"),
    "an annotation id twice": (put("annotations", 1, id=0), "the id 0 stands twice in annotations"),
    "a category id twice": (put("categories", 1, id=55), "the id 55 stands twice in categories"),
    "an id that is a list": (put("images", 1, id=[70]), "images[1] has the id [70]"),
    "a file name twice": (
        put("images", 1, file_name="set/0.jpg"),
        "image 71 has the file_name 'set/0.jpg'",
    ),
    "a file name that is a number": (put("images", 1, file_name=1), "image 71 has the file_name 1"),
    "a way out": (
        put("images", 1, file_name="../x.jpg"),
        "image 71 has the file_name '../x.jpg', which leads out",
    ),
    "a hidden way out": (
        put("images", 1, file_name="set/../../x.jpg"),
        "which leads out of the folder",
    ),
    "a way that would lead out of a link": (
        put("images", 1, file_name="set/../1.jpg"),
        "which leads out of the folder",
    ),
    "an absolute name": (
        put("images", 1, file_name="/etc/passwd"),
        "which leads out of the folder",
    ),
}


@pytest.mark.parametrize("edit, words", BAD.values(), ids=BAD)
def test_a_wrong_entry_is_refused_by_file_and_key(mine, refused_mine, edit, words):
    message = refused_mine(edit)
    assert str(mine.file) in message and words in message


CODE = compressed(square_pixels(4, 4, 9))
BAD_SEGMENTATIONS = {
    "two points": ([[1, 1, 9, 9]], "a polygon needs at least three points"),
    "an odd number": (
        [[1, 1, 9, 9, 4, 4, 2]],
        "a polygon needs at least three points, x and y in turn",
    ),
    "words": ([["a"] * 6], "a polygon holds what is no coordinate"),
    "nothing for numbers": ([[None] * 6], "a polygon holds what is no coordinate"),
    "pairs": (
        [[[1, 1], [9, 9], [1, 9], [2, 2], [3, 3], [4, 4]]],
        "a polygon holds what is no coordinate",
    ),
    "infinity": ([[float("inf"), 1, 9, 9, 4, 4]], "a polygon holds what is no coordinate"),
    "a coordinate out of all bounds": (
        [[1e300, 1, 9, 9, 4, 4]],
        "a polygon holds what is no coordinate",
    ),
    "nothing": ([], "no polygon and no run-length code"),
    "null": (None, "no polygon and no run-length code"),
    "a code of another size": (
        {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]},
        "not of size 32 x 40",
    ),
    "a code without a size": ({"counts": [WIDTH * HEIGHT]}, "not of size 32 x 40"),
    "a code whose size is a number": (
        {"size": 32, "counts": [WIDTH * HEIGHT]},
        "not of size 32 x 40",
    ),
    "a code without counts": ({"size": [HEIGHT, WIDTH]}, "not of size 32 x 40"),
    "a code that ends early": (
        {"size": [HEIGHT, WIDTH], "counts": [3, 2]},
        "counts do not fill 32 x 40 pixels",
    ),
    "a cut text": (
        {"size": [HEIGHT, WIDTH], "counts": compressed(square_pixels(4, 4, 9))["counts"][:7]},
        "do not fill",
    ),
}


@pytest.mark.parametrize("segmentation, words", BAD_SEGMENTATIONS.values(), ids=BAD_SEGMENTATIONS)
def test_a_wrong_segmentation_is_refused_where_it_is_read(mine, segmentation, words):
    mine.content["annotations"][0]["segmentation"] = segmentation
    mine.file.write_text(json.dumps(mine.content))
    with pytest.raises(ValueError) as caught:
        open_mine(mine)
    assert f"{mine.file}: annotation 0: " in str(caught.value) and words in str(caught.value)


def test_a_wrong_segmentation_ends_an_evaluation_and_leaves_no_folder(
    mine, refused, weight, base, tmp_path
):
    for annotation in mine.content["annotations"]:
        annotation["segmentation"] = [[1, 1, 9, 9]]
    mine.file.write_text(json.dumps(mine.content))
    words = [
        f"weight={weight}",
        f"base={base}",
        "fold=0",
        "image_size=64",
        "episodes=1",
        "workers=0",
    ]
    message = refused("eval", *mine.words, *words, f"out={tmp_path / 'out'}")
    assert str(mine.file) in message and "a polygon needs at least three points" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b'{"images": [{"id": 1', b'{"images": "caf\xe9"}', b"[1, 2]", b""]
)
def test_a_file_that_is_no_coco_file_is_refused(mine, refused, content):
    mine.file.write_bytes(content)
    assert str(mine.file) in refused("episodes", *mine.words)


def test_a_picture_of_another_size_than_the_file_says_is_refused(mine, picture):
    picture(0, HEIGHT, WIDTH).save(mine.photos / "set" / "0.jpg")
    benchmark = open_mine(mine)
    with pytest.raises(ValueError, match=r"0\.jpg is 32 x 40, .*my\.json says 40 x 32"):
        benchmark.decode(benchmark.images[0][0], 0)


def test_pictures_may_be_links(mine, tmp_path):
    before = open_mine(mine)
    before = before.decode(before.images[0][0], 0)
    file = mine.photos / "set" / "0.jpg"
    file.rename(tmp_path / "elsewhere.jpg")
    file.symlink_to(tmp_path / "elsewhere.jpg")
    benchmark = open_mine(mine)
    sample = benchmark.images[0][0]
    benchmark.check_files([sample])
    after = benchmark.decode(sample, 0)
    np.testing.assert_array_equal(np.asarray(after.image), np.asarray(before.image))
    np.testing.assert_array_equal(after.mask, before.mask)


def test_a_link_to_nothing_is_a_missing_picture(mine, refused_mine, tmp_path):
    file = mine.photos / "set" / "3.jpg"
    file.unlink()
    file.symlink_to(tmp_path / "nowhere.jpg")
    assert f"{file} does not exist (1 of " in refused_mine(lambda content: None)


def test_a_missing_picture_stops_training_before_it_starts(mine, refused_mine):
    (mine.photos / "set" / "3.jpg").unlink()
    message = refused_mine(lambda content: None)
    assert f"{mine.photos / 'set' / '3.jpg'} does not exist (1 of " in message


# ---- folder ----


def test_a_folder_gives_its_classes_by_name_and_its_pictures_in_order(zoo):
    benchmark = open_benchmark("folder", zoo, None, "train")
    assert benchmark.class_names == dict(enumerate(sorted(NAMES)))
    for class_id, name in benchmark.class_names.items():
        assert [sample.name for sample in benchmark.images[class_id]] == [
            f"{name}/{n}.jpg" for n in range(3)
        ]
        for number, sample in enumerate(benchmark.images[class_id]):
            picture = benchmark.decode(sample, class_id)
            np.testing.assert_array_equal(
                picture.mask, square_pixels(4 + NAMES.index(name), 6 + number, 16)
            )
            assert benchmark.classes_in(sample) == [class_id]


def test_pictures_saved_as_png_have_masks_of_their_own_name(zoo, picture):
    photo = picture(99, WIDTH, HEIGHT)
    photo.save(zoo / "owl" / "late.png")
    Image.fromarray(square_pixels(1, 2, 5)).save(zoo / "owl" / "late_mask.png")
    photo.save(zoo / "owl" / "other.jpg")
    Image.fromarray(square_pixels(3, 3, 5)).save(zoo / "owl" / "other_mask.png")
    benchmark = open_benchmark("folder", zoo, None, "train")
    owl = sorted(NAMES).index("owl")
    samples = {sample.name: sample for sample in benchmark.images[owl]}
    assert samples.keys() == {
        f"owl/{name}" for name in ("0.jpg", "1.jpg", "2.jpg", "late.png", "other.jpg")
    }
    decoded = benchmark.decode(samples["owl/late.png"], owl)
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(photo))
    np.testing.assert_array_equal(decoded.mask, square_pixels(1, 2, 5))
    np.testing.assert_array_equal(
        benchmark.decode(samples["owl/other.jpg"], owl).mask, square_pixels(3, 3, 5)
    )


def test_photos_and_masks_are_turned_upright_together(zoo, picture):
    exif = Image.Exif()
    exif[274] = 6  # turn right by 90 degrees to see it upright
    picture(5, WIDTH, HEIGHT).save(zoo / "owl" / "0.jpg", exif=exif)
    Image.fromarray(square_pixels(4, 6, 16).T.copy()).save(
        zoo / "owl" / "0.png"
    )  # painted on the upright photo
    benchmark = open_benchmark("folder", zoo, None, "train")
    decoded = benchmark.decode(benchmark.images[3][0], 3)
    assert decoded.image.size == (HEIGHT, WIDTH) and decoded.mask.shape == (WIDTH, HEIGHT)


@pytest.fixture
def refused_zoo(zoo, refused):
    return lambda *words: refused("check", "benchmark=folder", f"data={zoo}", "workers=1", *words)


def test_a_photo_without_a_mask_is_refused_by_its_name(zoo, refused_zoo, picture):
    (zoo / "crow" / "1.png").unlink()
    assert refused_zoo() == f"{zoo / 'crow' / '1.jpg'} has no mask; put it beside as 1.png"


def test_a_png_photo_without_a_mask_is_not_taken_for_a_mask(zoo, refused_zoo, picture):
    picture(1, WIDTH, HEIGHT).save(zoo / "crow" / "late.png")
    assert (
        refused_zoo() == f"{zoo / 'crow' / 'late.png'} has no mask; put it beside as late_mask.png"
    )


@pytest.mark.parametrize("name", ["crow/1.jpg", "crow/1.png", "crow"])
def test_photos_masks_and_class_folders_may_be_links(zoo, run, tmp_path, name):
    def decode():
        benchmark = open_benchmark("folder", zoo, None, "train")
        return [benchmark.decode(sample, 0) for sample in benchmark.images[0]]

    before, moved = decode(), tmp_path / "elsewhere"
    (zoo / name).rename(moved)
    (zoo / name).symlink_to(moved)
    after = decode()
    assert len(after) == len(before) == 3
    for new, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(np.asarray(new.image), np.asarray(old.image))
        np.testing.assert_array_equal(new.mask, old.mask)
    words = ["benchmark=folder", f"data={zoo}", "novel=crow", "workers=1"]
    assert run("check", *words).code == 0


def test_a_link_to_nothing_is_no_mask(zoo, refused_zoo, tmp_path):
    (zoo / "crow" / "1.png").unlink()
    (zoo / "crow" / "1.png").symlink_to(tmp_path / "nowhere.png")
    message = refused_zoo()
    assert str(zoo / "crow" / "1.jpg") in message and "1.png" in message


def test_a_name_that_is_not_utf8_is_refused(zoo, refused_zoo):
    for suffix in (".jpg", ".png"):
        os.rename(
            zoo / "crow" / f"1{suffix}", os.fsencode(zoo / "crow") + b"/caf\xe9" + suffix.encode()
        )
    assert "caf\\udce9.jpg': the name is not UTF-8 text; rename the file" in refused_zoo()


def test_names_in_other_scripts_are_taken(zoo, run):
    (zoo / "owl").rename(zoo / "сова")
    for suffix in (".jpg", ".png"):
        (zoo / "сова" / f"1{suffix}").rename(zoo / "сова" / f"фото\u202f1{suffix}")
    words = ["benchmark=folder", f"data={zoo}", "novel=сова", "workers=1"]
    assert run("check", *words).code == 0


def test_a_folder_without_classes_or_of_no_place_is_refused(zoo, refused, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "photo.jpg").write_bytes(b"")
    assert "no class folders in it" in refused(
        "episodes", "benchmark=folder", f"data={tmp_path / 'bare'}"
    )
    assert "no such folder" in refused(
        "episodes", "benchmark=folder", f"data={tmp_path / 'nowhere'}"
    )


def test_a_class_with_one_picture_is_refused_by_its_name(zoo, refused):
    for number in (1, 2):
        for suffix in (".jpg", ".png"):
            (zoo / "crow" / f"{number}{suffix}").unlink()
    message = refused("episodes", "benchmark=folder", f"data={zoo}", "novel=crow")
    assert "novel=crow" in message or "crow (1)" in message


def palette_mask(mask, values):
    file = Image.fromarray(np.where(mask > 0, values[1], values[0]).astype(np.uint8), "P")
    file.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return file


def test_masks_may_be_palette_one_bit_16_bit_or_grey_in_rgb(zoo):
    mask = square_pixels(7, 7, 9)
    kinds = [
        palette_mask(mask, (0, 1)),
        Image.fromarray(mask > 0),
        Image.fromarray(mask.astype(np.uint16) * 255),
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)),
    ]
    for kind in kinds:
        kind.save(zoo / "crow" / "0.png")
        benchmark = open_benchmark("folder", zoo, None, "train")
        np.testing.assert_array_equal(benchmark.decode(benchmark.images[0][0], 0).mask, mask)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda m: palette_mask(m, (0, 15)), "holds the values 0, 15"),
        (
            lambda m: Image.fromarray(np.dstack([m * np.uint8(255), m, m])),
            "is a colour picture, not a mask",
        ),
        (lambda m: Image.fromarray(m[:, :-1]), "the mask is 39 x 32, its picture 40 x 32"),
    ],
    ids=["palette", "colour", "size"],
)
def test_another_mask_ends_an_evaluation_in_one_line(
    zoo, refused, weight, base, tmp_path, make, words
):
    for number in range(3):
        make(square_pixels(7, 7, 9)).save(zoo / "crow" / f"{number}.png")
    keys = [
        f"weight={weight}",
        f"base={base}",
        "image_size=64",
        "episodes=1",
        "workers=0",
        f"out={tmp_path / 'out'}",
    ]
    message = refused("eval", "benchmark=folder", f"data={zoo}", "novel=crow", "fold=0", *keys)
    assert str(zoo / "crow") in message and words in message
    assert not (tmp_path / "out").exists()


def test_all_bad_annotations_are_listed_at_once(mine):
    for annotation in mine.content["annotations"][:25]:
        annotation["segmentation"] = [[1, 1, 9, 9]]
    mine.file.write_text(json.dumps(mine.content))
    with pytest.raises(ValueError) as caught:
        open_mine(mine)
    message = str(caught.value)
    assert "25 annotations are bad" in message and "and 5 more" in message
    assert all(f"annotation {number}:" in message for number in range(20))


EDITS = {
    "names twice": (put("categories", 0, name="owl"), "'owl' stands 2 times in categories"),
    "ids of two types": (put("categories", 0, id="55"), "'55'"),
    "an id of nothing": (put("categories", 0, id=None), "None"),
    "a class in words": (put("annotations", 0, category_id="11"), "category_id '11'"),
    "a crowd in words": (put("annotations", 0, iscrowd="perhaps"), "'perhaps'"),
    "shares of the picture": (
        lambda c: [
            a.update(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]) for a in c["annotations"]
        ],
        "60 of 60 polygons have all coordinates in [0, 1]",
    ),
}


@pytest.mark.parametrize("edit, words", EDITS.values(), ids=EDITS)
def test_what_would_score_something_else_is_refused(mine, edit, words):
    edit(mine.content)
    mine.file.write_text(json.dumps(mine.content))
    with pytest.raises(ValueError) as caught:
        open_mine(mine)
    assert str(mine.file) in str(caught.value) and words in str(caught.value)


def test_a_byte_order_mark_crowds_in_words_and_spaces_in_names_are_read(mine):
    for annotation in mine.content["annotations"]:
        annotation["iscrowd"] = {0: "false", 1: "1"}[annotation.get("iscrowd", 0)]
    mine.content["categories"][0]["name"] = " toad "
    plain = open_mine(mine, "train", fold=None)
    mine.file.write_bytes(b"\xef\xbb\xbf" + json.dumps(mine.content).encode())
    read = open_mine(mine, "train", fold=None)
    assert read.images == plain.images and read.class_names == plain.class_names


def test_crowds_are_counted_aloud_and_taken_if_asked_for(mine, run):
    for annotation in mine.content["annotations"]:
        if annotation["category_id"] == 11 and annotation["image_id"] > 70:
            annotation["iscrowd"] = 1
    mine.file.write_text(json.dumps(mine.content))
    words = ["check", *mine.words, "novel=lynx", "workers=1"]
    said = run(*words).err
    assert "owl (7)" in said and "crowd=object" in said
    assert len(open_mine(mine, novel=["owl"], crowd="object").images[0]) == 8
    assert "crowd" not in run(*words, "crowd=object").err


def test_classes_of_too_few_pictures_are_left_out_and_folds_are_of_the_others(mine, zoo, run):
    mine.content["categories"] += [
        {"id": 1, "name": "things", "supercategory": "none"},
        {"id": 2, "name": "yeti"},
    ]
    for category in mine.content["categories"][:5]:
        category["supercategory"] = "things"
    mine.file.write_text(json.dumps(mine.content))
    outcome = run("check", *mine.words, "folds=1", "workers=1")
    assert outcome.code == 0 and "5 classes" in outcome.out
    assert "things" in outcome.err and "yeti (0)" in outcome.err
    assert open_mine(mine, fold=0, folds=5).class_names[1] == "owl"

    for file in (zoo / "crow").glob("[12].*"):
        file.unlink()
    outcome = run("check", "benchmark=folder", f"data={zoo}", "folds=1", "workers=1")
    assert outcome.code == 0 and "4 classes" in outcome.out and "crow (1)" in outcome.err


def test_class_names_may_hold_commas(mine):
    mine.content["categories"][4]["name"] = "owl, barn"
    mine.file.write_text(json.dumps(mine.content))
    assert open_mine(mine, novel=["owl", " barn", "newt"]).class_ids == [0, 2]


def test_annotations_of_no_area_are_said(mine, run):
    mine.content["annotations"][0]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    mine.content["annotations"][4]["segmentation"] = [[500, 5, 590, 5, 590, 50]]
    mine.file.write_text(json.dumps(mine.content))
    said = run("check", *mine.words, "novel=newt", "workers=1").err
    assert "2 annotations mark no area" in said


def turned_photos(mine, picture, tag, stored):
    """Every photo is turned by EXIF; `stored` makes its file from the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = tag
    for number in range(20):
        file = mine.photos / "set" / f"{number}.png"
        stored(picture(number, WIDTH, HEIGHT)).save(file, exif=exif)
        mine.content["images"][number]["file_name"] = f"set/{number}.png"
    mine.file.write_text(json.dumps(mine.content))


@pytest.mark.parametrize(
    "tag, turn, said",
    [
        (6, Image.Transpose.ROTATE_90, None),  # only the upright view fits
        (3, Image.Transpose.ROTATE_180, "upright"),  # both do
        (6, None, "as stored"),
    ],
)
def test_annotated_photos_are_taken_in_the_view_that_fits(mine, picture, tag, turn, said):
    turned_photos(mine, picture, tag, lambda p: p if turn is None else p.transpose(turn))
    benchmark = open_mine(mine)
    sample = benchmark.images[0][0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = benchmark.decode(sample, 0)
    number = int(sample.name[4:-4])
    assert decoded.image.tobytes() == picture(number, WIDTH, HEIGHT).tobytes()
    told = [str(w.message) for w in caught if "EXIF" in str(w.message)]
    assert len(told) == bool(said) and (said or "") in "".join(told)


# ---- from pictures to weights to figures ----


@pytest.mark.parametrize("kind", ["coco_json", "folder"])
def test_own_data_is_trained_on_evaluated_and_segmented(kind, mine, zoo, run, tiny_base, tmp_path):
    data = mine.words if kind == "coco_json" else ["benchmark=folder", f"data={zoo}"]
    data = [*data, "novel=owl,newt"]
    out, common = tmp_path / "mine", ["device=cpu", "dtype=fp32", f"image_size={SIDE}", "workers=0"]
    steps = [
        "steps=3",
        "accumulate=1",
        "lr=1e-3",
        "shots=2",
        "validate_every=2",
        "validate_episodes=2",
    ]
    reset_accelerate()
    trained = run(
        "train", *data, *common, *steps, f"base={tiny_base}", f"out={out}", "checkpointing=false"
    )
    assert trained.code == 0, trained
    assert len((out / "log.jsonl").read_text().splitlines()) >= 3
    common = [*common, f"weight={out}", f"base={tiny_base}"]
    evaluated = run("eval", *data, *common, "episodes=6", "shots=2", f"out={tmp_path / 'scores'}")
    assert evaluated.code == 0, evaluated
    result = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert result["episodes"] == 6 and set(result["per_class"]) <= {"owl", "newt"}
    photos = [zoo / "owl" / f"{n}.jpg" for n in range(2)]
    words = [
        f"support={photos[0]}",
        f"mask={zoo / 'owl' / '0.png'}",
        f"query={photos[1]}",
        "threads=1",
    ]
    common.remove("workers=0")
    segmented = run("segment", *words, *common, f"out={tmp_path / 'masks'}")
    assert segmented.code == 0, segmented
    with Image.open(tmp_path / "masks" / "1_mask.png") as mask:
        assert mask.size == (WIDTH, HEIGHT) and set(np.unique(np.asarray(mask))) <= {0, 255}


def test_a_training_run_never_shows_a_novel_class(mine):
    benchmark = open_mine(mine, "train", novel=["owl"])
    assert 0 not in benchmark.images and all(
        len(samples) > 1 for samples in benchmark.images.values()
    )


# ---- detectron2 ----


def catalogue(mine):
    """The same data as detectron2's loaders give it: dicts, class ids from 0, codes with bytes."""
    records = []
    for image in mine.content["images"]:
        annotations = []
        for annotation in mine.content["annotations"]:
            if annotation["image_id"] == image["id"]:
                segmentation = annotation["segmentation"]
                if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
                    segmentation = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
                kept = {
                    "category_id": annotation["category_id"] // 11 - 1,
                    "iscrowd": annotation.get("iscrowd", 0),
                }
                annotations.append(
                    {**kept, "segmentation": segmentation, "bbox": [0, 0, 1, 1], "bbox_mode": 1}
                )
        file = str(mine.photos / image["file_name"])
        record = {"file_name": file, "height": HEIGHT, "width": WIDTH, "image_id": image["id"]}
        records.append({**record, "annotations": annotations})
    return records


class Metadata(types.SimpleNamespace):
    """As detectron2's: names are attributes, `get` has a default."""

    def get(self, name, default=None):
        return getattr(self, name, default)


@pytest.fixture
def detectron2(mine, monkeypatch):
    """detectron2's catalogue, in which `zoo` names its classes when read, as COCO files do."""
    known = {"zoo": Metadata(), "nameless": Metadata()}

    def read(name):
        if name == "zoo":
            known[name].thing_classes = list(NAMES)
        return catalogue(mine)

    package, data = types.ModuleType("detectron2"), types.ModuleType("detectron2.data")
    data.DatasetCatalog = SimpleNamespace(list=lambda: list(known), get=read)
    data.MetadataCatalog = SimpleNamespace(get=known.__getitem__)
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.data", data)


def assert_same_data(ours, other, photos):
    """Classes, pictures and pixels of a catalogue are those of the COCO file."""
    assert (ours.class_ids, ours.class_names) == (other.class_ids, other.class_names)
    for class_id in other.class_ids:
        assert len(ours.images[class_id]) == len(other.images[class_id]) > 1
        for sample, expected in zip(ours.images[class_id], other.images[class_id], strict=True):
            assert ours.files(sample) == [(photos / expected.name).resolve()]
            one, two = ours.decode(sample, class_id), other.decode(expected, class_id)
            assert one.image.tobytes() == two.image.tobytes()
            np.testing.assert_array_equal(one.mask, two.mask)
            np.testing.assert_array_equal(one.ignore, two.ignore)


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_catalogue_gives_the_same_data_as_its_coco_file(mine, detectron2, split):
    ours = open_benchmark("detectron2", "", 1, split, dataset="zoo", folds=2)
    assert_same_data(ours, open_mine(mine, split, fold=1, folds=2), mine.photos)


def test_numbers_of_a_catalogue_may_be_numpys(mine):
    records = catalogue(mine)
    for record in records:
        record["height"], record["width"] = np.int64(HEIGHT), np.int32(WIDTH)
        for annotation in record["annotations"]:
            annotation["category_id"] = np.int64(annotation["category_id"])
    content = from_catalogue(records, NAMES, "zoo")
    assert content.images_of(0) == from_catalogue(catalogue(mine), NAMES, "zoo").images_of(0) != []


def test_episodes_and_the_check_run_on_a_catalogue(detectron2, run):
    words = ["benchmark=detectron2", "dataset=zoo", "novel=lynx,toad"]
    assert len(json.loads(run("episodes", *words).out)) == 1000
    assert run("check", *words, "workers=1").code == 0


def test_a_catalogues_name_is_looked_up(detectron2, refused):
    words = ["episodes", "benchmark=detectron2"]
    assert "dataset=zooo is not registered in detectron2; did you mean 'zoo'?" in refused(
        *words, "dataset=zooo"
    )
    assert "needs dataset=NAME" in refused(*words)
    assert "dataset=nameless names no classes; set thing_classes" in refused(
        *words, "dataset=nameless"
    )


def test_without_detectron2_the_error_says_how_to_install_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    message = refused("episodes", "benchmark=detectron2", "dataset=zoo")
    assert (
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
        in message
    )


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda r: r[3].pop("height"), ("zoo: record 3", "'height'")),
        (lambda r: r[3]["annotations"][0].pop("segmentation"), ("set/3.jpg", "'segmentation'")),
        (lambda r: r[3]["annotations"][0].update(category_id=5), ("zoo", "the category_id 5")),
        (lambda r: r[3]["annotations"][0].pop("category_id"), ("set/3.jpg", "'category_id'")),
        (lambda r: r.append(r[3]), ("set/3.jpg", "stands twice")),
    ],
)
def test_a_wrong_record_of_a_catalogue_is_refused(mine, edit, words):
    records = catalogue(mine)
    edit(records)
    with pytest.raises(ValueError) as caught:
        from_catalogue(records, NAMES, "zoo")
    assert all(word in str(caught.value) for word in words)


def test_a_real_detectron2_gives_the_same_data(mine):
    pytest.importorskip("detectron2")
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("diffews_zoo", {}, str(mine.file), str(mine.photos))
    ours = open_benchmark("detectron2", "", 1, "test", dataset="diffews_zoo", folds=2)
    assert_same_data(ours, open_mine(mine, fold=1, folds=2), mine.photos)
