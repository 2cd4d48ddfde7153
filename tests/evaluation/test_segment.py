"""`diffews segment`: people's pictures of any mode and size, and one line for what cannot work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffews import load_pipeline
from diffews.cli.settings import SegmentConfig
from diffews.evaluation.queries import find_queries


@pytest.fixture
def pictures(picture, square_mask, tmp_path):
    """A support with its mask, and a folder of two queries, as files."""
    folder = tmp_path / "pictures"
    (folder / "queries").mkdir(parents=True)
    picture(1, 80, 60).save(folder / "support.png")
    Image.fromarray(square_mask(80, 60)).save(folder / "mask.png")
    picture(2, 90, 50).save(folder / "queries" / "one.png")
    picture(3, 40, 70).save(folder / "queries" / "two.jpg", quality=95)
    return folder


@pytest.fixture
def words(weight, base, pictures, tmp_path):
    """The command line with good input; a word said again wins."""
    words = f"segment weight={weight} base={base} image_size=64 threads=1 out={tmp_path / 'out'}"
    words += f" support={pictures / 'support.png'} mask={pictures / 'mask.png'}"
    return [*words.split(), f"query={pictures / 'queries' / 'one.png'}"]


def read(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_a_mask_and_an_overlay_are_written_at_the_querys_own_size(
    run, words, pictures, weight, base, tmp_path
):
    outcome = run(*words)
    assert outcome.code == 0 and "wrote 1 mask" in outcome.out
    names = ["one_mask.png", "one_overlay.jpg"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names

    mask, overlay = (read(tmp_path / "out" / name) for name in names)
    assert mask.shape == (50, 90) and overlay.shape == (50, 90, 3)
    assert set(np.unique(mask)) == {0, 255}

    pipe = load_pipeline(weight, base)
    support, query = (Image.open(pictures / name) for name in ("support.png", "queries/one.png"))
    bank = pipe.encode_support(support, read(pictures / "mask.png"), image_size=64)
    assert np.array_equal(mask > 0, pipe(query, bank, image_size=64).masks[0])

    change = np.abs(overlay.astype(int) - np.asarray(query)).mean(2)
    assert change[mask == 0].mean() > 2 * change[mask > 0].mean()  # all but the thing is darkened


def test_it_runs_without_a_word_on_threads(run, words):
    assert run(*[word for word in words if not word.startswith("threads=")]).code == 0


def test_a_folder_and_a_list_of_queries(run, words, pictures, tmp_path):
    assert run(*words, f"query={pictures / 'queries'}").code == 0
    masks = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    assert set(masks) == {"one_mask.png", "two_mask.png"}
    assert read(tmp_path / "out" / "two_mask.png").shape == (70, 40)

    listed = f"query={pictures / 'queries' / 'one.png'},{pictures / 'queries' / 'two.jpg'}"
    assert run(*words, listed, f"out={tmp_path / 'listed'}").code == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "listed").glob("*.png")} == masks


def test_several_supports_in_any_order(run, words, pictures, picture, square_mask, tmp_path):
    picture(4, 50, 50).save(pictures / "second.png")
    Image.fromarray(square_mask(50, 50)).save(pictures / "second_mask.png")
    supports = [str(pictures / name) for name in ("support.png", "second.png")]
    support_masks = [str(pictures / name) for name in ("mask.png", "second_mask.png")]
    masks = []
    for order in (1, -1):
        pairs = f"support={','.join(supports[::order])}", f"mask={','.join(support_masks[::order])}"
        assert run(*words, *pairs).code == 0
        masks.append(read(tmp_path / "out" / "one_mask.png"))
    assert (masks[0] != masks[1]).sum() <= 4  # rounding alone
    assert run(*words).code == 0
    assert (read(tmp_path / "out" / "one_mask.png") != masks[0]).sum() > 4


@pytest.mark.parametrize("mode", ["L", "CMYK", "P"])
def test_pictures_of_every_mode_just_work(run, words, pictures, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    for name in ("support", "queries/one"):
        with Image.open(pictures / f"{name}.png") as image:
            image.convert(mode).save(pictures / f"{name}_{mode}{suffix}")
    support, query = (f"{pictures / name}_{mode}{suffix}" for name in ("support", "queries/one"))
    assert run(*words, f"support={support}", f"query={query}").code == 0


def test_a_photo_is_segmented_upright(run, words, pictures, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture(2, 90, 50).save(pictures / "photo.jpg", exif=exif)
    assert run(*words, f"query={pictures / 'photo.jpg'}").code == 0
    assert read(tmp_path / "out" / "photo_mask.png").shape == (90, 50)


def masks_in(out):
    return {str(file.relative_to(out)) for file in out.rglob("*_mask.png")}


def test_sub_folders_keep_their_place_and_what_is_left_out_is_said(
    run, words, pictures, picture, tmp_path
):
    queries = pictures / "queries"
    (queries / "deep").mkdir()
    picture(6).save(queries / "deep" / "one.png")
    picture(6).save(queries / "gas_mask.jpg")  # a photo
    (queries / "notes.txt").write_text("hello")
    outcome = run(*words, f"query={queries}")
    assert outcome.code == 0
    assert all(part in outcome.err for part in ("notes.txt", "deep", "recursive=true"))
    there = {"one_mask.png", "two_mask.png", "gas_mask_mask.png"}
    assert masks_in(tmp_path / "out") == there

    assert run(*words, f"query={queries}", "recursive=true").code == 0
    assert masks_in(tmp_path / "out") == there | {"deep/one_mask.png"}


def test_queries_of_one_name_are_told_apart_by_folder_or_ending(pictures, picture):
    other = pictures / "other"
    other.mkdir()
    picture(5).save(other / "one.png")
    picture(5).save(pictures / "queries" / "two.tif")
    word = f"{pictures / 'queries' / '*.*'}", str(other / "one.png")
    found = find_queries(SegmentConfig(query=list(word))).found
    assert {query.name for query in found} == {"queries/one", "other/one", "two_jpg", "two_tif"}


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(run, words, pictures, tmp_path):
    queries = pictures / "queries"
    whole = (queries / "one.png").read_bytes()
    (queries / "empty.heic").write_bytes(b"")
    (queries / "half.png").write_bytes(whole[: len(whole) // 2])
    outcome = run(*words, f"query={queries}")
    assert outcome.code == 1
    assert "half.png" in outcome.err and "pillow-heif" in outcome.err
    assert masks_in(tmp_path / "out") == {"one_mask.png", "two_mask.png"}


def test_a_second_run_does_what_is_missing_or_of_other_settings(run, words, pictures, tmp_path):
    words, out = [*words, f"query={pictures / 'queries'}"], tmp_path / "out"
    assert "wrote 2 mask" in run(*words).out
    (out / "one_mask.png").unlink()
    (out / ".one_mask.png.123.partial").write_bytes(b"")
    again = run(*words)
    assert "wrote 1 mask" in again.out and "two.jpg" in again.err
    assert not list(out.glob(".*"))
    assert "wrote 2 mask" in run(*words, "threshold=0.5").out
    assert "wrote 2 mask" in run(*words, "threshold=0.5", "overwrite=true").out

    # a mask that somebody painted stays
    Image.new("L", (90, 50), 255).save(out / "one_mask.png")
    kept = run(*words, "threshold=0.5")
    assert "wrote 0 mask" in kept.out and "one_mask.png" in kept.err
    assert read(out / "one_mask.png").all()


# ---- bad input ----


@pytest.fixture
def refused_segment(refused, words, tmp_path):
    """refused_segment(*words): the refusal of bad input, which must not have written anything."""

    def call(*more):
        message = refused(*words, *more)
        assert not (tmp_path / "out").exists()
        return message

    return call


def test_what_must_be_given_is_asked_for(refused, words):
    for key in ("support", "mask", "query"):
        without = [word for word in words if not word.startswith(f"{key}=")]
        assert f"{key}=" in refused(*without)
        assert f"{key}=" in refused(*words, f"{key}=")


def test_a_support_without_a_mask_is_refused(refused_segment, pictures):
    both = f"support={pictures / 'support.png'},{pictures / 'queries' / 'one.png'}"
    message = refused_segment(both)
    assert all(part in message for part in ("2", "1", "support=", "mask="))


@pytest.mark.parametrize("key", ["support", "mask", "query"])
def test_a_missing_file_is_named(refused_segment, pictures, key):
    file = str(pictures / "none.png")
    assert file in refused_segment(f"{key}={file}")


@pytest.mark.parametrize("key", ["support", "mask", "query"])
@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_file_that_is_no_picture_is_named(refused_segment, pictures, key, content):
    file = pictures / "bad.png"
    truncated = (pictures / "support.png").read_bytes()[:200]
    file.write_bytes(truncated if content is None else content)
    message = refused_segment(f"{key}={file}")
    assert str(file) in message and "replace the file" in message


def test_a_mask_of_another_size_than_its_support_is_refused(refused_segment, pictures, square_mask):
    Image.fromarray(square_mask(10, 20)).save(pictures / "mask.png")
    message = refused_segment()
    assert all(part in message for part in ("mask.png", "10 x 20", "80 x 60"))


@pytest.mark.parametrize("values", [(0, 7), (0, 1, 255)])
def test_a_mask_that_is_neither_0_1_nor_0_255_is_refused(refused_segment, pictures, values):
    mask = np.resize(np.array(values, np.uint8), (60, 80))
    Image.fromarray(mask).save(pictures / "mask.png")
    message = refused_segment()
    assert "mask.png" in message and ", ".join(map(str, values)) in message
    assert "{0, 1}" in message and "{0, 255}" in message


def test_a_colour_picture_as_a_mask_is_refused(refused_segment, pictures):
    file = str(pictures / "support.png")
    message = refused_segment(f"mask={file}")
    assert file in message and "colour" in message


def test_a_folder_without_pictures_is_refused(refused_segment, tmp_path):
    (tmp_path / "empty").mkdir()
    word = f"query={tmp_path / 'empty'}"
    assert f"{word}:" in refused_segment(word)


def test_a_mask_that_marks_nothing_at_its_size_or_at_the_models_is_refused(
    refused_segment, pictures
):
    mask = np.zeros((60, 80), np.uint8)
    Image.fromarray(mask).save(pictures / "mask.png")
    assert "mask.png marks no pixel of 80 x 60" in refused_segment()
    mask[1, 1] = 255
    Image.fromarray(mask).save(pictures / "mask.png")
    message = refused_segment("image_size=16")
    assert all(part in message for part in ("mask.png", "image_size=16", "1 at 80 x 60"))


def test_a_result_is_not_written_over_what_was_given(refused, words, pictures, picture):
    Image.open(pictures / "mask.png").save(pictures / "queries" / "one_mask.png")
    mask = pictures / "queries" / "one_mask.png"
    support = pictures / "queries" / "one.png"
    more = [f"support={support}", f"mask={mask}", f"out={pictures / 'queries'}"]
    Image.new("L", (90, 50), 255).save(mask)
    assert str(mask) in refused(*words, *more)


def test_masks_and_earlier_results_in_a_folder_of_queries_are_no_queries(pictures, picture):
    folder = pictures / "queries"
    for name in ("photo.jpg", "photo_overlay.jpg"):
        picture(5).save(folder / name)
    for name in ("photo.png", "photo_mask.png"):
        Image.new("L", (64, 64), 255).save(folder / name)
    before = len(list(folder.glob("*.png"))) + len(list(folder.glob("*.jpg"))) - 4
    found = find_queries(SegmentConfig(query=[str(folder)]))
    names = {query.file.name for query in found.found}
    assert "photo.jpg" in names and len(names) == before + 1
    said = {Path(file).name for files in found.left_out.values() for file in files}
    assert said == {"photo.png", "photo_mask.png", "photo_overlay.jpg"}


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("image_size=60", ["image_size=60", "8"]),
        ("threshold=2", ["threshold=2.0", "[0, 1)"]),
        ("quary=a.jpg", ["'quary'", "'query'"]),
        ("batch=0", ["batch=0", "1"]),
        ("weight=none", ["weight=none"]),
        ("base=none", ["base=none"]),
    ],
)
def test_a_wrong_setting_is_refused(refused_segment, word, parts):
    message = refused_segment(word)
    assert all(part in message for part in parts)


def test_corrupt_weights_are_refused(refused_segment, own_weight):
    file = own_weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file.parent) in refused_segment(f"weight={own_weight}")


def test_a_full_disk_leaves_no_half_picture(refused, words, largest_file, tmp_path):
    with largest_file(50):
        assert "free some space" in refused(*words)
    assert not any(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["../owl", "/tmp/owl", "a/../../owl"])
def test_the_name_of_a_class_leads_to_no_bank_elsewhere(refused, words, pictures, tmp_path, name):
    support, mask = pictures / "support.png", pictures / "mask.png"
    more = [f"support={support},{support}", f"mask={mask},{mask}", f"classes={name},newt"]
    message = refused(*words, *more, f"save_bank={tmp_path / 'banks'}")
    assert f"classes=: the name {name!r}" in message
    assert not list(tmp_path.rglob("*.safetensors"))
