"""`diffews check`: a good folder, and what is said of every kind of damage."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffews.data.registry import open_benchmark

SPLITS = ("train", "val", "test")


@pytest.fixture
def check(run, own_coco):
    """check(*words): the report on a copy of the golden folder; by default of its test split."""

    def call(*words):
        return run("check", "benchmark=coco20i", f"data={own_coco}", "workers=1", *words)

    return call


@pytest.fixture
def listed(own_coco):
    """A listed (sample, class, image file, mask file) of fold 0; the mask has no other class."""
    benchmark = open_benchmark("coco20i", own_coco, 0, "test")
    class_id = benchmark.class_ids[0]
    sample = benchmark.images[class_id][0]
    return sample, class_id, *benchmark.files(sample)


def assert_names(outcome, file):
    """The folder is bad, and one line of the report names the file."""
    assert outcome.code == 1
    assert outcome.out.rstrip().endswith("the folder is NOT good")
    assert outcome.err.count("Traceback") == 0
    lines = [line for line in outcome.out.splitlines() if str(file) in line]
    assert lines, outcome.out
    return lines[0]


def test_a_good_folder_ends_with_0_and_says_so(check, own_coco):
    outcome = check()
    assert outcome.code == 0 and outcome.out.rstrip().endswith("the folder is good")
    benchmark = open_benchmark("coco20i", own_coco, 0, "test")
    samples = {s for listed in benchmark.images.values() for s in listed}
    pairs = sum(len(set(listed)) for listed in benchmark.images.values())
    first = f"test: {len(benchmark.class_ids)} classes, {len(samples)} pictures, {pairs} masks"
    assert outcome.out.splitlines()[0] == first


def test_each_split_that_is_asked_for_is_tested(check):
    outcome = check(f"parts={','.join(SPLITS)}")
    assert outcome.code == 0
    assert list(
        dict.fromkeys(line.split(":")[0] for line in outcome.out.splitlines()[:-1])
    ) == list(SPLITS)
    assert outcome.out.count("cannot stand beside published ones") == len(SPLITS)


def test_nothing_in_the_folder_changes(check, own_coco):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in own_coco.rglob("*")}
    check("parts=train,test")
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in own_coco.rglob("*")
    } == before


@pytest.mark.parametrize("which", [2, 3], ids=["picture", "mask"])
def test_a_missing_file_is_named(check, listed, which):
    listed[which].unlink()
    outcome = check()
    assert "missing: " in assert_names(outcome, listed[which])
    assert "pictures or their masks are missing" in outcome.out


def test_of_many_missing_files_the_first_listed_are_named_and_all_are_counted(check, own_coco):
    benchmark = open_benchmark("coco20i", own_coco, 0, "test")
    samples = list(dict.fromkeys(s for listed in benchmark.images.values() for s in listed))
    for sample in samples:
        benchmark.files(sample)[1].unlink()
    outcome = check()
    assert (
        f"test: {len(samples)} of {len(samples)} pictures or their masks are missing" in outcome.out
    )
    named = [line for line in outcome.out.splitlines() if line.startswith("  missing: ")]
    assert named == [f"  missing: {benchmark.files(sample)[1]}" for sample in samples[:5]]


@pytest.mark.parametrize("which", [2, 3], ids=["picture", "mask"])
def test_a_truncated_file_is_named(check, listed, which):
    whole = listed[which].read_bytes()
    listed[which].write_bytes(whole[: len(whole) // 2])
    assert "cannot be decoded" in assert_names(check(), listed[which])


@pytest.mark.parametrize("which", [2, 3], ids=["picture", "mask"])
def test_a_file_that_is_no_picture_is_named(check, listed, which):
    listed[which].write_bytes(b"<html>404</html>")
    assert "no picture that can be read" in assert_names(check(), listed[which])


def test_a_mask_of_another_size_than_its_picture_is_named(check, listed):
    with Image.open(listed[3]) as mask:
        turned = np.asarray(mask).T
    larger = np.pad(turned, ((0, 7), (0, 0)))
    Image.fromarray(larger).save(listed[3])
    assert "the mask is " in assert_names(check(), listed[3])


def test_a_value_out_of_range_is_named(check, listed):
    with Image.open(listed[3]) as mask:
        values = np.array(mask)
    values[0, 0] = 81
    Image.fromarray(values).save(listed[3])
    assert "holds the value 81" in assert_names(check(), listed[3])


def test_a_class_without_a_pixel_is_named(check, listed):
    with Image.open(listed[3]) as mask:
        values = np.array(mask)
    values[values == listed[1] + 1] = 0
    Image.fromarray(values).save(listed[3])
    assert f"no pixel of class {listed[1]}" in assert_names(check(), listed[3])


def test_a_colour_mask_is_named(check, listed):
    with Image.open(listed[2]) as picture:
        Image.fromarray(np.asarray(picture.convert("RGB"))).save(listed[3])
    assert "is a colour picture, not a mask" in assert_names(check(), listed[3])


def test_two_processes_report_the_same_as_one(check, own_coco, listed):
    listed[3].write_bytes(b"")
    benchmark = open_benchmark("coco20i", own_coco, 0, "test")
    other = next(s for samples in benchmark.images.values() for s in samples if s != listed[0])
    benchmark.files(other)[0].unlink()
    one, two = check(), check("workers=2")
    assert (one.code, one.out) == (two.code, two.out) and one.code == 1


def test_a_fault_in_one_split_is_not_hidden_by_the_next(check, listed):
    listed[3].unlink()
    outcome = check("parts=test,train")
    assert_names(outcome, listed[3])
    assert any(line.startswith("train: ") for line in outcome.out.splitlines())


@pytest.mark.parametrize(
    "words, named",
    [
        (["fold=4"], "fold=4"),
        (["parts=tests"], "split='tests' is not one of test, train, val; did you mean 'test'?"),
        (["annotations=my.json"], "annotations= is no key of benchmark=coco20i"),
        (["dataset=mine"], "dataset= is no key of benchmark=coco20i"),
        (["novel=cat"], "novel= is no key of benchmark=coco20i"),
        (["folds=5"], "folds= is no key of benchmark=coco20i"),
        (["images=2016"], "images=2016 is not one of 2014, 2017"),
        (["shot=1"], "unknown key 'shot'"),
    ],
)
def test_what_the_benchmark_does_not_take_is_refused(refused, own_coco, words, named):
    assert named in refused("check", "benchmark=coco20i", f"data={own_coco}", *words)


@pytest.mark.parametrize(
    "benchmark", ["pascal5i", "fss1000", "lvis92i", "ade20k", "deepglobe", "isic", "chest_xray"]
)
def test_annotations_are_for_coco_json_alone(refused, tmp_path, benchmark):
    words = ["check", f"benchmark={benchmark}", f"data={tmp_path}", "annotations=my.json"]
    assert refused(*words) == f"annotations= is no key of benchmark={benchmark}"


def test_own_data_is_checked_too(run, tmp_path, picture, square_mask):
    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(2):
            picture(number).save(tmp_path / "own" / name / f"{number}.jpg")
            Image.fromarray(square_mask().astype(np.uint8)).save(
                tmp_path / "own" / name / f"{number}.png"
            )
    words = [
        "check",
        "benchmark=folder",
        f"data={tmp_path / 'own'}",
        "folds=2",
        "parts=test,train",
        "workers=1",
    ]
    assert run(*words).code == 0
    sevens = np.where(square_mask(), 7, 0).astype(np.uint8)
    Image.fromarray(sevens).save(tmp_path / "own" / "dog" / "1.png")
    assert "holds the values 0, 7" in assert_names(run(*words), tmp_path / "own" / "dog" / "1.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "own" / "dog" / "1.png")
    assert "no pixel of class 1 (dog)" in assert_names(
        run(*words), tmp_path / "own" / "dog" / "1.png"
    )


def test_a_polygon_that_is_none_is_a_fault_of_the_folder(run, tmp_path, picture):
    (tmp_path / "photos").mkdir()
    segmentation = [[5, 5, 40, 5, 40, 40, 5, 40]]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 64} for i in range(2)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": segmentation} for i in range(2)
    ]
    for number in range(2):
        picture(number).save(tmp_path / "photos" / f"{number}.jpg")
    file = tmp_path / "my.json"
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    file.write_text(json.dumps(content))
    words = [
        "check",
        "benchmark=coco_json",
        f"annotations={file}",
        f"images={tmp_path / 'photos'}",
        "folds=1",
    ]
    assert run(*words, "workers=1").code == 0
    annotations[1]["segmentation"] = [[5, 5, 40, 5]]
    file.write_text(json.dumps(content))
    line = assert_names(run(*words, "workers=1"), file)
    assert (
        line.strip()
        == f"{file}: annotation 1: a polygon needs at least three points, x and y in turn"
    )


def test_a_folder_that_is_not_there_is_all_missing(run, own_coco):
    pictures = open_benchmark("coco20i", own_coco, 0, "test").root / "val2014"
    shutil.rmtree(pictures)
    outcome = run("check", "benchmark=coco20i", f"data={own_coco}", "workers=1")
    assert_names(outcome, pictures)
