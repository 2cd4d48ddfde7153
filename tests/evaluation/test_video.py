"""`segment` of a clip or of frames: the bank is the support, and the last frames with the thing."""

import contextlib
import io
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from diffews import load_pipeline
from diffews.cli.main import main
from diffews.cli.settings import SegmentConfig
from diffews.evaluation.clips import unpack_clips
from diffews.evaluation.queries import Query, find_queries
from diffews.evaluation.video import FrameMemory

COUNT = 4  # frames


@pytest.fixture(scope="module")
def frames(picture, square_mask, tmp_path_factory):
    """A support with its mask, a folder of frames, and a clip of them."""
    folder = tmp_path_factory.mktemp("video")
    (folder / "frames").mkdir()
    picture(1).save(folder / "support.png")
    Image.fromarray(square_mask()).save(folder / "mask.png")
    code = cv2.VideoWriter.fourcc(*"mp4v")
    film = cv2.VideoWriter(str(folder / "walk.mp4"), code, 10, (64, 48))
    for number in range(COUNT):
        image = picture(20 + number, 64, 48)
        image.save(folder / "frames" / f"f{number + 8}.png")  # f8, f9, f10, f11
        film.write(np.asarray(image)[..., ::-1])
    film.release()
    return folder


@pytest.fixture(scope="module")
def words(frames, weight, base):
    words = f"segment weight={weight} base={base} image_size=64 threads=1 memory=2"
    words += f" support={frames / 'support.png'} mask={frames / 'mask.png'}"
    return [*words.split(), f"query={frames / 'frames'}", "video=true"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """What an uninterrupted run writes; never written to."""
    out = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*words, f"out={out}"]) == 0
    return out


def read(file):
    with Image.open(file) as image:
        return np.asarray(image)


def files(out):
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.suffix in (".png", ".jpg")
    }


def test_a_frame_reads_the_support_and_the_last_frames_as_shots(whole, frames, weight, base):
    pipe = load_pipeline(weight, base)
    shots = [(frames / "support.png", frames / "mask.png")]
    for number in (8, 9, 10, 11):
        frame = Image.open(frames / "frames" / f"f{number}.png")
        recent = shots[-2:] if len(shots) > 2 else shots[1:]
        seen = [shots[0], *recent]
        bank = pipe.encode_support(*map(list, zip(*seen, strict=True)), image_size=64)
        found = pipe(frame, bank, image_size=64).masks[0]
        mask = read(whole / f"f{number}_mask.png") > 0
        assert (mask != found).sum() <= 4 and mask.any()  # rounding
        shots.append((frame, mask))


def test_memory_changes_masks_and_none_is_the_support_alone(whole, words, run, tmp_path):
    alone = [word for word in words if word != "video=true"]
    assert run(*alone, f"out={tmp_path / 'alone'}").code == 0
    assert run(*words, "memory=0", f"out={tmp_path / 'none'}").code == 0
    for number in range(8, 12):
        name = f"f{number}_mask.png"
        same = read(tmp_path / "alone" / name)
        assert np.array_equal(same, read(tmp_path / "none" / name))
        assert number == 8 or (same != read(whole / name)).any()


def test_an_interrupted_video_goes_on_to_the_same_bytes(whole, words, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("f9_mask.png", "f11_overlay.jpg"):  # one in the middle, and the last
        (out / name).unlink()
    assert "wrote 2 mask" in run(*words, f"out={out}").out
    assert files(out) == files(whole)


def test_a_frame_that_changes_makes_all_after_it_anew(words, whole, frames, run, picture, tmp_path):
    shutil.copytree(frames / "frames", tmp_path / "frames")
    shutil.copytree(whole, tmp_path / "out")
    picture(50, 64, 48).save(tmp_path / "frames" / "f10.png")
    more = [f"query={tmp_path / 'frames'}", f"out={tmp_path / 'out'}"]
    assert "wrote 2 mask" in run(*words, *more).out


def test_a_clip_becomes_frames_masks_labels_and_a_clip(words, frames, run, tmp_path):
    clip, out = frames / "walk.mp4", tmp_path / "out"
    alone = [word for word in words if word != "video=true"]
    outcome = run(*alone, f"query={clip}", f"out={out}", "format=coco")
    assert outcome.code == 0 and f"wrote {COUNT} mask" in outcome.out, outcome.err
    names = [f"{number:06d}" for number in range(COUNT)]
    assert all((out / "walk" / f"{name}_mask.png").is_file() for name in names)
    assert [file.stem for file in sorted((out / "frames" / "walk").glob("*.jpg"))] == names
    first = read(out / "frames" / "walk" / "000000.jpg").astype(int)
    assert np.abs(first - read(frames / "frames" / "f8.png")).mean() < 8  # compressed twice
    assert '"walk/000003.jpg"' in (out / "annotations.coco.json").read_text()

    film = cv2.VideoCapture(str(out / "walk_overlay.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == 10
    there, frame = film.read()
    assert there and frame.shape == (48, 64, 3)
    overlay = read(out / "walk" / "000000_overlay.jpg")[..., ::-1].astype(int)
    assert np.abs(frame - overlay).mean() < 12

    # what is read once is not read again, and a second run finds all done
    before = {file: file.stat().st_mtime_ns for file in (out / "frames").rglob("*.jpg")}
    assert "wrote 0 mask" in run(*alone, f"query={clip}", f"out={out}").out
    assert {file: file.stat().st_mtime_ns for file in (out / "frames").rglob("*.jpg")} == before


def test_frames_come_in_the_order_of_their_numbers(frames):
    config = SegmentConfig(query=[str(frames / "frames")], video=True, memory=1)
    names = [query.name for query in find_queries(config).found]
    assert names == ["f8", "f9", "f10", "f11"]


def test_what_shows_nothing_is_not_remembered_and_each_folder_is_a_video(pipe, square_mask):
    """The memory by itself, with banks that a real model encoded."""
    from pathlib import Path

    image = np.full((64, 64, 3), 90, np.uint8)
    support = pipe.encode_support(image, square_mask())
    queries = [
        Query(Path(f"{folder}/{i}.png"), f"{folder}{i}") for folder in "ab" for i in range(4)
    ]
    memory = FrameMemory(
        [support, support], queries, 2, 64, pipe.encode_support, lambda frame: None
    )
    nothing, first, both = np.zeros((64, 64)), square_mask() * 1, square_mask() * 1
    both[:10, :10] = 2
    shots = []
    found = [first, nothing, both, both, first, first, first, first]
    for query, labels in zip(queries, found, strict=True):
        shots.append([bank.shots for bank in memory.recall(query)])
        memory.remember(query, image, labels)
    assert shots == [[1, 1], [2, 1], [2, 1], [3, 2], [1, 1], [2, 1], [3, 1], [3, 1]]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["batch=4"], ["batch=4", "video"]),
        (["memory=-1"], ["memory=-1", "0"]),
        (["query={}/walk.mp4,{}/support.png"], ["walk.mp4", "pictures"]),
        (["query={}/none.mp4"], ["none.mp4", "does not exist"]),
        (["query={}/bad.mp4"], ["bad.mp4", "video=true"]),
        (["query={}/walk.mp4", "mask={}/none.png"], ["none.png"]),
    ],
)
def test_what_is_no_video_is_refused(refused, words, frames, tmp_path, more, parts):
    (frames / "bad.mp4").write_bytes(b"no clip at all" * 100)
    more = [word.replace("{}", str(frames)) for word in more]
    message = refused(*words, *more, f"out={tmp_path / 'out'}")
    assert all(part in message for part in parts)
    assert not list(tmp_path.glob("out/*"))


def test_a_clip_that_is_cut_off_gives_the_frames_that_are_there(frames, tmp_path):
    """Another clip of the same name is read anew."""
    clip = tmp_path / "walk.mp4"
    shutil.copy(frames / "walk.mp4", clip)
    config = SegmentConfig(query=[str(clip)], out=str(tmp_path / "out"))
    (folder,) = unpack_clips(config).query
    film = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 10, (32, 32))
    film.write(np.zeros((32, 32, 3), np.uint8))
    film.release()
    assert unpack_clips(config).query == [folder]
    assert [file.name for file in (tmp_path / "out" / "frames" / "walk").glob("*.jpg")] == [
        "000000.jpg"
    ]
