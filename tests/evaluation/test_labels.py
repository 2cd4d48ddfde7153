"""Labels in the formats of other tools: each file, read back, is the mask that was written."""

import json
import weakref

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from diffews.data import load_benchmark
from diffews.evaluation.labels.label_studio import brush_code
from diffews.evaluation.labels.parts import find_parts, outline, run_lengths
from diffews.evaluation.labels.picture import Picture
from diffews.evaluation.labels.write import WRITERS, write_labels
from diffews.images.masks import resize_mask

CLASSES = ["owl", 'a "newt" & co']
PRESENCE = [0.75, 0.5]


def rings(height, width, label=1):
    """A ring around a dot around a hole, one pixel, a line, and marks on every edge."""
    labels = np.zeros((height, width), np.uint8)
    centre = (width // 2, height // 2)
    for radius, value in ((min(centre) - 2, label), (8, 0), (5, label), (2, 0)):
        cv2.circle(labels, centre, radius, value, -1)
    labels[0, 3:9] = labels[-1, -1] = labels[7:12, 0] = labels[2, 2] = label
    return labels


def noise(seed, share, height=30, width=41):
    return (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)


def two_classes(height, width):
    labels = rings(height, width)
    labels[height // 3 : height // 2][labels[height // 3 : height // 2] == 0] = 2
    return labels


LABELS = {"one": two_classes(60, 80), "deep/two": rings(50, 40, 2), "none": np.zeros((20, 30))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("album") / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, labels in LABELS.items():
        picture(1, *labels.shape[::-1]).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(photos):
    return [
        Picture(photos / f"{name}.png", name, f"{name}.png", labels.astype(np.uint8), PRESENCE)
        for name, labels in LABELS.items()
    ]


@pytest.fixture(scope="module")
def out(pictures, tmp_path_factory):
    """All formats, each part an object; never written to."""
    out = tmp_path_factory.mktemp("out")
    write_labels(out, iter(pictures), CLASSES, list(WRITERS))
    return out


def filled(shape, shapes):
    """Polygons with their labels, filled with their border by OpenCV and by Pillow: the same."""
    ours = np.zeros(shape, np.uint8)
    theirs = Image.new("L", shape[::-1])
    for label, points in shapes:
        cv2.fillPoly(ours, [np.array(points, np.int32)], int(label))
        ImageDraw.Draw(theirs).polygon(
            list(map(tuple, points)), fill=int(label), outline=int(label)
        )
    assert np.array_equal(ours, theirs)
    return ours


def unpack(code):
    """Reads a brush as Label Studio does, bit by bit -> RGBA values."""
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, width, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        values += [read(width)] * length if repeated else [read(width) for _ in range(length)]
    assert len(values) == total and len(bits) - place < 8
    return np.array(values, np.uint8)


# ---- parts ----


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8, 0.97, 1.0])
def test_runs_and_outlines_of_noise_are_the_mask_again(share):
    for seed in range(4):
        mask = noise(seed, share, 20 + seed, 31)
        parts, _ = find_parts(mask)
        counts = run_lengths(parts, *mask.shape, by_column=True)
        size = list(mask.shape)
        code = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
        assert code["counts"] == coco_mask.encode(np.asfortranarray(mask))["counts"]
        assert np.array_equal(filled(mask.shape, [(1, outline(part)) for part in parts]), mask)


def test_a_hole_stays_a_hole_in_a_polygon_and_corners_are_few():
    mask = np.zeros((40, 40), np.uint8)
    mask[5:35, 5:35], mask[15:25, 10:30] = 1, 0
    (part,), _ = find_parts(mask)
    assert np.array_equal(filled(mask.shape, [(1, outline(part))]), mask)
    assert len(outline(part)) == 15  # four, the eight around the hole, and the ends of the seam


def test_parts_touch_at_corners_and_small_ones_are_counted():
    mask = np.zeros((10, 10), np.uint8)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = mask[9, 9] = 1
    parts, small = find_parts(mask, least_area=2)
    assert [(part.left, part.top, part.area) for part in parts] == [(0, 0, 3)] and small == 1


# ---- each format ----


def test_coco_is_the_masks_again(out, pictures):
    coco = COCO(out / "annotations.coco.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == CLASSES
    assert [i["file_name"] for i in coco.loadImgs(coco.getImgIds())] == [p.place for p in pictures]
    for i, picture in enumerate(pictures, start=1):
        found = np.zeros(picture.size, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[i])):
            mask = coco.annToMask(annotation)
            left, top, width, height = map(int, annotation["bbox"])
            assert mask.sum() == mask[top : top + height, left : left + width].sum()
            assert mask.sum() == annotation["area"] and annotation["iscrowd"] == 0
            assert annotation["score"] == PRESENCE[annotation["category_id"] - 1]
            assert cv2.connectedComponents(mask)[0] == 2
            found[mask > 0] = annotation["category_id"]
        assert np.array_equal(found, picture.labels)


def test_yolo_is_the_masks_again_whether_a_reader_cuts_or_rounds(out, pictures):
    for picture in pictures:
        lines = (out / "labels" / f"{picture.name}.txt").read_text().splitlines()
        shares = [np.array(line.split()[1:], np.float32).reshape(-1, 2) for line in lines]
        numbers = [int(line.split()[0]) + 1 for line in lines]
        size = np.array(picture.size[::-1])
        for whole in (np.floor, np.round):
            points = [whole(share * size).astype(int).tolist() for share in shares]
            found = filled(picture.size, list(zip(numbers, points, strict=True)))
            assert np.array_equal(found, picture.labels)
        assert (out / "images" / f"{picture.name}.png").resolve() == picture.photo.resolve()
    assert f"1: {json.dumps(CLASSES[1])}" in (out / "data.yaml").read_text()


def test_label_studio_has_brushes_that_are_the_masks_and_polygons(out, pictures):
    tasks = json.loads((out / "label_studio.json").read_text())
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=photos/deep/two.png"
    for task, picture in zip(tasks, pictures, strict=True):
        (prediction,) = task["predictions"]
        found = np.zeros(picture.size, np.uint8)
        shapes = []
        for result in prediction["result"]:
            assert (result["original_height"], result["original_width"]) == picture.size
            value = result["value"]
            if result["type"] == "brushlabels":
                rgba = unpack(value["rle"]).reshape(*picture.size, 4)
                assert (rgba == rgba[..., :1]).all()
                found[rgba[..., 3] == 255] = CLASSES.index(value["brushlabels"][0]) + 1
            else:
                points = np.array(value["points"]) * picture.size[::-1] // 100
                shapes.append((CLASSES.index(value["polygonlabels"][0]) + 1, points.astype(int)))
        assert np.array_equal(found, picture.labels)
        assert np.array_equal(filled(picture.size, shapes), picture.labels)
    assert [task["predictions"][0].get("score") for task in tasks] == [0.75, 0.5, None]


def test_a_brush_of_a_large_picture():
    mask = np.zeros((300, 200), np.uint8)
    mask[150:, 1:] = 1  # a run of 120,600 values that mark nothing
    parts, _ = find_parts(mask)
    assert np.array_equal(unpack(brush_code(parts, 300, 200))[::4].reshape(300, 200) > 0, mask)


def test_labelme_is_the_masks_again(out, pictures):
    for picture in pictures:
        file = out / "labelme" / f"{picture.name}.json"
        content = json.loads(file.read_text())
        assert (file.parent / content["imagePath"]).resolve() == picture.photo.resolve()
        assert (content["imageHeight"], content["imageWidth"]) == picture.size
        shapes = [(CLASSES.index(s["label"]) + 1, s["points"]) for s in content["shapes"]]
        assert np.array_equal(filled(picture.size, shapes), picture.labels)


def test_palettes_and_cutouts(out, pictures):
    for picture in pictures:
        with Image.open(out / "palette" / f"{picture.name}.png") as image:
            assert image.mode == "P" and np.array_equal(image, picture.labels)
            assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        with Image.open(out / "cutouts" / f"{picture.name}.png") as image:
            rgba = np.asarray(image)
        assert np.array_equal(rgba[..., 3] == 255, picture.labels > 0)
        photo = np.asarray(Image.open(picture.photo))
        assert np.array_equal(rgba[..., :3], photo * (picture.labels > 0)[..., None])


def test_without_parts_a_class_is_one_object_and_small_parts_are_left_out(pictures, tmp_path):
    counts = write_labels(
        tmp_path, pictures[:1], CLASSES, ["coco", "labelme", "label_studio"], False, 10
    )
    assert counts.objects == 2 and counts.small > 1
    annotations = json.loads((tmp_path / "annotations.coco.json").read_text())["annotations"]
    assert [annotation["category_id"] for annotation in annotations] == [1, 2]
    left = sum(annotation["area"] for annotation in annotations)
    kept, _ = find_parts(pictures[0].labels, 10)
    assert left == sum(part.area for part in kept) < (pictures[0].labels > 0).sum()

    shapes = json.loads((tmp_path / "labelme" / "one.json").read_text())["shapes"]
    assert len(shapes) == len(kept) > 2 and {shape["group_id"] for shape in shapes} == {1, 2}
    results = json.loads((tmp_path / "label_studio.json").read_text())[0]["predictions"][0]
    assert [r["type"] for r in results["result"]].count("brushlabels") == 2


# ---- files ----


def test_one_picture_is_held_at_a_time(pictures, tmp_path):
    held = []
    most = 0

    def come():
        nonlocal most
        for number in range(8):
            picture = Picture(pictures[0].photo, f"{number}", f"{number}.png", noise(number, 0.5))
            held.append(weakref.ref(picture))
            most = max(most, sum(other() is not None for other in held))
            yield picture

    assert write_labels(tmp_path, come(), CLASSES, ["coco", "label_studio"]).pictures == 8
    assert most <= 2


def test_a_run_that_fails_leaves_the_earlier_files_or_none(pictures, tmp_path):
    def fail():
        yield pictures[0]
        raise KeyboardInterrupt

    for earlier in (False, True):
        if earlier:
            write_labels(tmp_path, pictures, CLASSES, ["coco", "label_studio"])
        before = {file: file.read_bytes() for file in tmp_path.glob("*")}
        with pytest.raises(KeyboardInterrupt):
            write_labels(tmp_path, fail(), CLASSES, ["coco", "label_studio"])
        assert {file: file.read_bytes() for file in tmp_path.glob("*")} == before


def test_links_to_photos_are_renewed_and_never_replace_a_file(pictures, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_text("mine")
    (tmp_path / "images" / "none.png").symlink_to("/nowhere")
    for _ in range(2):
        write_labels(tmp_path, pictures, CLASSES, ["yolo"])
        assert (tmp_path / "images" / "one.png").read_text() == "mine"
        assert (tmp_path / "images" / "none.png").resolve() == pictures[2].photo.resolve()

    # the photo may be such a link itself
    link = tmp_path / "images" / "none.png"
    write_labels(
        tmp_path, [Picture(link, "none", "none.png", pictures[2].labels)], CLASSES, ["yolo"]
    )
    assert link.resolve() == pictures[2].photo.resolve()


# ---- our own benchmarks read them ----


def test_the_coco_json_benchmark_reads_what_is_written(photos, pictures, tmp_path):
    write_labels(tmp_path, pictures, CLASSES, ["coco"])
    dataset = load_benchmark(
        "coco_json", tmp_path, annotations=str(tmp_path / "annotations.coco.json"), episodes=4,
        images=str(photos), novel=[CLASSES[1]], image_size=40,
    )  # fmt: skip
    for i in range(4):
        episode = dataset[i]
        labels = {p.place: p.labels for p in pictures}[episode.query_name]
        expected = resize_mask((labels == 2).astype(np.uint8), 40)
        assert expected.any() and np.array_equal(np.asarray(episode.query_mask), expected)
