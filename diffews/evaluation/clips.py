"""Clips as folders of frames, and overlays as clips: OpenCV's decoder and encoder."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from diffews.errors import InputError
from diffews.evaluation.queries import RECORD, check_supports, is_clip
from diffews.images.drawing import save_image
from diffews.images.files import open_rgb
from diffews.runtime.files import (
    check_regular, hash_files, new_folder, read_json, write_atomic)
from diffews.runtime.locks import one_writer

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig

FRAMES = "frames"  # in `out`: a folder of each clip
NO_CLIP = ("is no clip that OpenCV can decode; turn it into a folder of frames, and give "
           "video=true")
RATE = 25.0  # frames a second, where a clip says none


def unpack_clips(config: "SegmentConfig") -> "SegmentConfig":
    """Reads each clip of query= into out/frames/<clip>, once -> the config of these folders.

    Raises:
        InputError: for clips together with pictures, or of one name; for what cannot be read.

    """
    clips = [Path(word) for word in config.query if is_clip(word)]
    if not clips:
        return config
    if len(clips) < len(config.query):
        raise InputError(f"query= holds a clip, {clips[0]}, and pictures; segment them one after "
                         "the other")
    names = [clip.stem for clip in clips]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"two clips are named {double!r}; give each an out= of its own")

    check_supports(replace(config, video=True))  # before anything is written
    for clip in clips:
        check_regular(clip)
        if not clip.exists():
            raise InputError(f"query={clip} does not exist")
    folders = [Path(config.out, FRAMES, name) for name in names]
    with one_writer(Path(config.out)):
        for clip, folder in zip(clips, folders, strict=True):
            read_clip(clip, folder)
    return replace(config, query=[str(folder) for folder in folders], video=True)


def read_clip(clip: Path, folder: Path) -> None:
    """Writes a clip's frames as folder/000000.jpg, ..., upright; again only for another clip."""
    made_of = hash_files([clip])
    if folder.exists():
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder} is there and was not made of {clip}; give another out=")
        if read_json(folder / RECORD).get("sha256") == made_of:
            return
        shutil.rmtree(folder)  # of another clip of this name

    # errors of the decoder are ours to say, in one line
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(0)
    film = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG)
    if not film.isOpened():
        raise InputError(f"query={clip} {NO_CLIP}")
    rate, said = film.get(cv2.CAP_PROP_FPS), int(film.get(cv2.CAP_PROP_FRAME_COUNT))
    total = said if said > 0 else None
    with new_folder(folder) as partial, tqdm(total=total, desc=clip.name, unit="frame") as bar:
        count = 0
        while True:
            there, frame = film.read()
            if not there:
                break
            save_image(partial / f"{count:06d}.jpg", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            count += 1
            bar.update()
        film.release()

        if count == 0:
            raise InputError(f"query={clip} {NO_CLIP}")
        if count < said:
            bar.write(f"diffews: {clip} says that it has {said} frames; {count} could be read")
        rate = rate if 0 < rate < 1000 else RATE
        record = {"clip": clip.name, "sha256": made_of, "frames": count, "rate": rate}
        write_atomic(partial / RECORD, json.dumps(record) + "\n")


def write_overlays(config: "SegmentConfig") -> None:
    """Joins the overlays of each clip's frames: out/<clip>_overlay.mp4."""
    for folder in map(Path, config.query):
        if (folder / RECORD).is_file():
            rate = float(read_json(folder / RECORD)["rate"])
            overlays = sorted(Path(config.out, folder.name).glob("*_overlay.jpg"))
            write_clip(Path(config.out, f"{folder.name}_overlay.mp4"), overlays, rate)


def write_clip(place: Path, pictures: list[Path], rate: float) -> None:
    """Writes pictures of one size as an MPEG-4 clip, complete or not at all."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=place.parent) as partial:
        film, file = None, Path(partial, place.name)
        for picture in pictures:
            frame = np.asarray(open_rgb(picture))
            if film is None:
                code = cv2.VideoWriter.fourcc(*"mp4v")
                film = cv2.VideoWriter(str(file), code, rate, frame.shape[1::-1])
            film.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if film is not None:
            film.release()
        if not file.is_file():
            raise InputError(f"{place} cannot be encoded by this OpenCV; the overlays lie beside")
        file.replace(place)
