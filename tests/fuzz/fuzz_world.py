"""The small world that fuzz cases start from: data, weights, a bank, a finished run.

Never written to. A case is a folder of links into it, in which alone the mutated files are real.
"""

import contextlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parent.parent / "data"
SECRET = "secret"  # a folder beside every case; nothing in it may be opened
FILE = "diffusion_pytorch_model.safetensors"
CATEGORIES = ("owl", "lynx", "newt", "crow", "toad")


def make_world(folder: Path) -> Path:
    """Builds the world; takes about two seconds once torch is loaded."""
    for archive in ("goldens_coco", "goldens_bench"):
        with zipfile.ZipFile(DATA / f"{archive}.zip") as content:
            content.extractall(folder)
    shutil.unpack_archive(DATA / "onnx_small.tar.xz", folder / "small", filter="data")
    (folder / "coco20i_mini").rename(folder / "coco")
    (folder / "bench_mini").rename(folder / "bench")
    _make_photos(folder)
    _make_stable_diffusion(folder)
    _make_downloads(folder / "downloads")
    _make_results(folder)
    for config in ("eval", "train"):
        lines = ["image_size: 64", "shots: 1", "fold: 0", "workers: 0", "threads: 1"]
        lines += ["dtype: fp32", "benchmark: coco20i", "splits: auto"]
        (folder / f"{config}.yaml").write_text("\n".join(lines) + "\n")
    return folder


def open_case(world: Path, case: Path, mutated: list[str]) -> None:
    """Makes a case's folder: links into the world, and copies of the files to mutate."""
    secret = case.parent / SECRET
    if not secret.is_dir():
        secret.mkdir(parents=True)
        picture(9).save(secret / "secret.jpg")
        Image.new("L", (64, 64), 1).save(secret / "secret.png")
        (secret / "config.json").write_text("{}")
    case.mkdir(parents=True)
    for name in os.listdir(world):
        (case / name).symlink_to(world / name)
    for name in mutated:
        target = case
        for part in Path(name).parts:
            target = target / part
            if not target.is_symlink():
                continue
            origin = target.resolve()
            target.unlink()
            if origin.is_dir():
                target.mkdir()
                for entry in os.listdir(origin):
                    (target / entry).symlink_to(origin / entry)
            else:
                shutil.copyfile(origin, target)


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _mask(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return Image.fromarray(pixels)


def _make_photos(folder: Path) -> None:
    """Own data: photos with masks to segment, a folder of classes, and a COCO file."""
    own = folder / "own"
    (own / "queries").mkdir(parents=True)
    picture(1).save(own / "support.png")
    _mask().save(own / "mask.png")
    picture(2).save(own / "queries" / "one.png")
    picture(3).save(own / "queries" / "two.jpg")

    square = [[16, 12, 48, 12, 48, 36, 16, 36]]
    images, annotations = [], []
    for number in range(10):
        name = CATEGORIES[number // 2]
        place = folder / "classes" / name
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number}.jpg")
        _mask().save(place / f"{number}.png")
        entry = {"id": number, "file_name": f"{name}/{number}.jpg", "width": 64, "height": 48}
        images.append(entry)
        shape = {"size": [48, 64], "counts": [500, 1000, 1572]} if number % 3 == 0 else square
        common = {"image_id": number, "category_id": number // 2 + 1, "segmentation": shape}
        annotations.append({**common, "id": number, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (own / "coco.json").write_text(json.dumps(content))


def _make_stable_diffusion(folder: Path) -> None:
    """Stable Diffusion as it comes: the golden base with a UNet that has no `conv_in_ref`."""
    from safetensors.torch import load_file, save_file

    place, unet = folder / "sd", folder / "weight" / "coco_fold0" / "unet" / "unet"
    shutil.copytree(folder / "weight" / "tiny-random-base", place)
    tensors = load_file(unet / FILE)
    plain = {name: t for name, t in tensors.items() if not name.startswith("conv_in_ref")}
    save_file(plain, place / "unet" / FILE)
    config = json.loads((unet / "config.json").read_text())
    config.pop("in_channels_ref")
    config["_class_name"] = "UNet2DConditionModel"
    (place / "unet" / "config.json").write_text(json.dumps(config))


def _make_downloads(folder: Path) -> None:
    """What `diffews prepare` starts from: COCO's, LVIS's and SBD's annotations."""
    from scipy.io import savemat

    square = [[16, 12, 48, 12, 48, 36, 16, 36]]
    code = {"size": [48, 64], "counts": [500, 1000, 1572]}
    images = [
        {"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "width": 64, "height": 48}
        | {"coco_url": f"http://images.cocodataset.org/val2017/{i:012d}.jpg"}
        for i in range(1, 7)
    ]
    annotations = [
        {"id": i, "image_id": i % 6 + 1, "category_id": i % 4 + 1, "iscrowd": 0}
        | {"segmentation": code if i % 3 == 0 else square}
        for i in range(12)
    ]
    categories = [{"id": i, "name": f"class{i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    coco = folder / "COCO2014"
    (coco / "annotations").mkdir(parents=True)
    (coco / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    (coco / "splits" / "val").mkdir(parents=True)
    for fold in range(4):
        lists = {c: ["val2014/COCO_val2014_000000000001.jpg"] for c in range(fold, 80, 4)}
        (coco / "splits" / "val" / f"fold{fold}.json").write_text(json.dumps(lists))
    (folder / "LVIS").mkdir()
    (folder / "LVIS" / "lvis_v1_val.json").write_text(json.dumps(content))

    voc, sbd = folder / "VOC2012" / "SegmentationClass", folder / "sbd" / "cls"
    voc.mkdir(parents=True)
    sbd.mkdir(parents=True)
    values = (np.arange(48 * 64).reshape(48, 64) % 21).astype(np.uint8)
    Image.fromarray(values).save(voc / "2007_000001.png")
    for name in ("2007_000002", "2007_000003"):
        savemat(sbd / f"{name}.mat", {"GTcls": {"Segmentation": values}})


def _make_results(folder: Path) -> None:
    """A bank, a list of episodes, and a finished run, by the commands that write them."""
    from diffews.cli.main import main

    where = [f"weight={folder}/weight/coco_fold0", f"base={folder}/weight/tiny-random-base"]
    keys = [*where, "image_size=64", "threads=1"]
    own = folder / "own"
    commands = [
        ["segment", *keys, f"support={own}/support.png", f"mask={own}/mask.png"]
        + [f"query={own}/queries", f"out={folder}/masks", f"save_bank={own}/bank.safetensors"],
        ["episodes", f"data={folder}/coco", "fold=0", f"save={own}/list.json"],
        ["eval", *keys, f"data={folder}/coco", "episodes=4", "workers=0", f"out={folder}/run"],
        ["train-presence", *keys, f"data={folder}/coco", "queries=2", "workers=0", "hidden=2"]
        + [f"out={folder}/headed"],
        ["eval", *keys, f"data={folder}/coco", "episodes=2", "workers=0", f"out={folder}/fs_cs"]
        + ["protocol=fs_cs", "presence=cosine"],
    ]
    for words in commands:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
        if code:
            raise RuntimeError(f"{words[0]}: {said.getvalue()[-300:]}")
