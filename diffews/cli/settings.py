"""The settings of the commands that ask a model, from which `diffews COMMAND --help` is made.

One dataclass a command, one line a key; what a key can say of itself is in `keys.py`. Classes whose
name ends in Keys are shared by several commands. The docstring of a command's class is its help:
what it does, and examples. The others are in `training_settings.py` and `tool_settings.py`.
"""

from dataclasses import dataclass
from typing import Any

from diffews.cli.keys import (
    BYTES, CHECKOUT, REQUIRED, key, list_key, model_key, output_key, rounding_key, speed_key)
from diffews.cli.label_settings import LabelKeys
from diffews.data.registry import BENCHMARKS, SPLITS_SOURCES, check_fold
from diffews.data.weak_masks import PROMPTS
from diffews.errors import InputError
from diffews.images.drawn_masks import Pick
from diffews.images.masks import THRESHOLD_RULES, check_presence, check_threshold
from diffews.images.weak import DEFAULT_WEAK, WEAK

DTYPES = ("fp32", "bf16", "fp16")
DATASETS = str(CHECKOUT / "datasets")
DATA = "folder that holds the benchmark's folder"
BIN = "read pickled .bin weights (tensors only) where there is no safetensors file"
PRESENCES = ("auto", "off", "cosine", "full", "fast")
PRESENCE_TEXT = (
    "who says whether the class is there at all: the weight dir's head if it has one (auto), a "
    "head of the kind full or fast, cosine, which needs no training, or nobody")
DEVICE = "where to compute: auto, cpu, cuda, cuda:1, mps ..."


@dataclass(frozen=True)
class BenchmarkKeys:
    """Which episodes."""

    benchmark: str = key("coco20i", "data set and protocol", BENCHMARKS)
    fold: int | None = key(
        None, "fold whose classes are novel; by default N of the weight's `_fold<N>`", least=0)
    shots: int = key(1, "support images of an episode", least=1)
    data: str = list_key(DATASETS, DATA)
    splits: str = list_key(
        "auto", "image lists: the data folder's if it has any, else built in", SPLITS_SOURCES)
    images: str | None = list_key(
        None, "coco20i: 2017 finds the pictures in COCO 2017; coco_json: folder of the pictures")
    annotations: str | None = list_key(None, "coco_json: the JSON file")
    dataset: str | None = list_key(None, "detectron2: name in its catalogue")
    folds: int | None = list_key(
        None, "coco_json, folder, detectron2: number of folds, 4 by default", least=1)
    novel: list[str] = list_key(
        [], "coco_json, folder, detectron2: names of the novel classes, instead of a fold")
    crowd: str | None = list_key(
        None, "coco_json, detectron2: regions with iscrowd=1 are pixels that count for nothing "
        "(ignore, the default), or objects as any other", ("ignore", "object", None))
    mask_value: int | None = list_key(
        None, "folder: in masks that are label maps, which value (or palette index) is the object",
        least=0)
    mask_colour: list[int] = list_key(
        [], "folder: in painted masks, which colour is the object: 255,0,0")

    def check(self) -> None:
        """Raises InputError for a fold that the benchmark does not have, or what is no colour."""
        if self.fold is not None:
            check_fold(self.benchmark, self.fold)
        Pick.of(self.mask_value, self.mask_colour)

    def options(self) -> dict[str, Any]:
        """Returns the keys that only some benchmarks take."""
        names = ("images", "annotations", "dataset", "folds", "novel", "crowd", "mask_value",
                 "mask_colour")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ListKeys(BenchmarkKeys):
    """Which list of test episodes."""

    episodes: int | None = key(
        None, "use the first N episodes of the list; all by default", least=1, changes_result=False)
    episodes_file: str | None = list_key(None, "use a list that `diffews episodes save=FILE` wrote")
    drawn_shots: int | None = list_key(
        None, "draw the list for so many shots and use the first; same queries for all", least=1)

    def list_options(self) -> dict[str, Any]:
        """Returns the keys that say which list."""
        names = ("episodes", "episodes_file", "drawn_shots")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ModelKeys:
    """Which weights, and how they run."""

    weight: str | None = model_key(
        None, "weight dir, which holds unet/unet, unet or config.json, or its hub:owner/name; by "
        "default weight/tiny/shapes_fold<fold>", counted_as="weight_sha256")
    base: str | None = model_key(
        None, "folder or hub:owner/name with VAE and text; by default as recorded in, or found "
        "beside, the weight dir", counted_as="base_sha256")
    allow_bin: bool = model_key(False, BIN, changes_result=False)
    image_size: int | None = model_key(
        None, "side in pixels, a multiple of the VAE's factor; by default as recorded, else 512",
        least=1)
    encoder: str | None = model_key(
        None, "small VAE (AutoencoderTiny) whose encoder replaces the base's",
        counted_as="encoder_sha256")
    decoder: str | None = model_key(
        None, "small VAE whose decoder replaces the base's; `diffews distill-decoder` makes one",
        counted_as="decoder_sha256")
    denoising_steps: int = model_key(
        10, "denoising steps of weights that were trained with a multi-step generation", least=1)
    ensemble: int = model_key(
        1, "predictions that are averaged, for generation=multi_step_noise_to_mask", least=1)
    threshold: float | None = model_key(
        None, "share of the maximum (or, if absolute, the score in [0, 1)) that foreground "
        "exceeds; by default as recorded with the weights, else 0.25")
    threshold_rule: str = model_key(
        "reference", "of what the threshold is a share: the maximum over RGB (the released code), "
        "that of the mean image (paper), or nothing", THRESHOLD_RULES)
    dtype: str = speed_key("fp32", "precision of the UNet; fp16 keeps the VAE in fp32", DTYPES)
    device: str = rounding_key("auto", DEVICE)
    fast: bool = speed_key(  # changes nothing itself: the keys that it stands for are what counts
        False, "batch=auto, on a GPU tf32=true and half precision (bf16 where it is fast), on a "
        "CPU channels_last=true and threads= all cores; batch=1, dtype=fp32 and threads=1 count "
        "as not given", changes_result=False)
    channels_last: bool = rounding_key(
        False, "memory layout in which convolutions are fastest; changes rounding")
    compile: bool = rounding_key(
        False, "torch.compile: minutes at the start, for long runs; changes rounding")
    low_memory: bool = rounding_key(
        False, "parts wait in main memory until they run, the VAE takes one picture at a time")
    tf32: bool = rounding_key(
        False, "GPU: 10-bit mantissas in products; changes rounding")

    def presence_kind(self) -> str:
        """Returns who is asked whether a query holds the class at all: nobody, by default."""
        return "off"

    def check(self) -> None:
        """Raises InputError for a threshold or a number of steps that cannot be."""
        check_threshold(self.threshold or 0, self.threshold_rule)
        if self.denoising_steps >= 1000:
            steps = f"denoising_steps={self.denoising_steps}"
            raise InputError(f"{steps} must be below 1000, the timesteps of training")


@dataclass(frozen=True)
class EvalConfig(ListKeys, ModelKeys):
    """Evaluate weights on few-shot episodes; a run goes on where it stopped.

    diffews eval weight=weight/coco_fold0 shots=5 out=results/coco_fold0_5shot
    diffews eval weight=weight/coco_fold0 episodes=100 fast=true
    """

    prompt: str = key(
        "mask", "what is shown of the supports' masks: all, or a box, a scribble or a point that "
        "is drawn from them", PROMPTS)
    relative_thresholds: list[float] = key(
        [], "also count at these shares of the maximum, by threshold_rule: 0.2,0.3",
        changes_result=BYTES, counted_as="sweep")
    absolute_thresholds: list[float] = key(
        [], "also count at these scores: 0.1,0.2", changes_result=BYTES, counted_as="sweep")
    extra_metrics: bool = key(
        False, "also count at the pictures' own size, and boundary IoU; decodes each query twice",
        changes_result=BYTES)
    protocol: str = key(
        "fs_s", "fs_s segments what is there; fs_cs asks which of `way` classes are there, too "
        "(iFSL): exact ratio and mIoU", ("fs_s", "fs_cs"), counted_as="fs_cs")
    way: int = key(1, "fs_cs: classes that a query is asked for", least=1, counted_as="fs_cs")
    absent: bool = key(
        False, "also ask each query for a class that it does not hold, and score presence: AUROC, "
        "false alarms, mIoU with a gate at 0.5", counted_as="negatives")
    presence: str = model_key(
        "auto", PRESENCE_TEXT, PRESENCES, counted_as="presence_sha256")
    kv_sampling: int | None = model_key(
        None, "keep a random subset of the support's keys and values, as many as N shots have "
        "(paper, section 4.5)", least=1)
    flips: bool = model_key(
        False, "average each episode with its mirror image: twice the work, a little better")
    batch: int | str = rounding_key(
        1, "episodes computed at once, or auto; 1 is exact, more may flip pixels that sit on the "
        "threshold", ("auto",), 1)
    threads: int = rounding_key(
        1, "CPU threads of the model; results are the same bytes at the same number", least=1)
    workers: int = speed_key(
        2, "processes that decode pictures, 0: the main process; never changes results", least=0,
        changes_result=False)
    out: str | None = output_key(
        None, "folder for episodes.jsonl and result.json; by default results/<weight>/<settings>")
    pictures: int = output_key(
        0, "write support | query | prediction | truth panels of the first N episodes", least=0)
    save_masks: bool = output_key(
        False, "write each predicted mask as out/masks/<index>.png (0 and 255)")

    def asks_presence(self) -> bool:
        """Whether presence is asked for: it costs time, and changes no mask."""
        return self.absent or self.protocol == "fs_cs"

    def presence_kind(self) -> str:
        """Returns who is asked; see `ModelKeys`."""
        return self.presence if self.asks_presence() else "off"

    def check(self) -> None:
        """Raises InputError for a threshold that cannot be."""
        for threshold in (*self.relative_thresholds, *self.absolute_thresholds):
            check_threshold(threshold, "absolute")
        if self.protocol != "fs_cs":
            if self.way != 1:
                raise InputError(f"way={self.way} needs protocol=fs_cs")
            return

        taken: dict[str, Any] = {
            "absent": False, "extra_metrics": False, "kv_sampling": None, "pictures": 0,
            "save_masks": False, "batch": 1, "relative_thresholds": [], "absolute_thresholds": [],
            "episodes_file": None, "drawn_shots": None, "flips": False, "prompt": "mask"}
        other = [name for name, value in taken.items() if getattr(self, name) != value]
        if other:
            raise InputError(f"{other[0]}= has no meaning with protocol=fs_cs; leave it out")


@dataclass(frozen=True)
class BaselinesConfig(ListKeys, ModelKeys):
    """Score what needs no model, and a model that is shown the wrong class.

    diffews baselines weight=weight/coco_fold0 episodes=200
    diffews baselines weight=weight/coco_fold0 runs=results/coco_fold0 out=baselines.json
    """

    runs: list[str] = key([], "folders of `diffews eval` to show in the same table")
    names: list[str] = output_key(
        [], "name of each run's row, in the same order; by default DiffewS and its shots")
    threads: int = speed_key(1, "CPU threads of the model", least=1)
    out: str | None = output_key(None, "JSON file for the table; none by default")


@dataclass(frozen=True)
class EpisodesConfig(ListKeys):
    """Print the test episodes as JSON: [[class_id, query, [supports]], ...].

    diffews episodes fold=0 shots=1
    diffews episodes benchmark=pascal5i fold=2 shots=5 save=episodes.json
    """

    fold: int | None = key(0, "fold whose classes are novel", least=0)
    save: str | None = output_key(
        None, "also write the list with its hash as JSON, for episodes_file=")


@dataclass(frozen=True)
class SegmentConfig(LabelKeys, ModelKeys):
    """Segment pictures of your own: what the support's mask marks, in each query.

    diffews segment weight=weight/incontext support=cat.jpg mask=cat.png query=photos
    diffews segment weight=weight/coco_fold0 support=a.jpg box=40,60,320,410 query=b format=coco
    """

    support: list[str] = key([], "support picture(s): a.jpg or a.jpg,b.jpg")
    mask: list[str] = key([], "their masks, in the same order: white on black, in any format")
    box: str = key(
        "", "in place of mask=: a box around the object, x0,y0,x1,y1 in pixels of the upright "
        "picture; several supports: '1,2,30,40;5,6,70,80'")
    point: str = key(
        "", "in place of mask=: points on the object, x,y or x,y,x,y; several supports: 'x,y;x,y'")
    scribble: list[str] = key([], "in place of mask=: strokes on the object, white on black")
    weak: str = key(
        DEFAULT_WEAK, "what makes a mask of box=, point= or scribble=: it is as drawn (fill); its "
        "colours (grabcut); the model, shown the support itself (self); auto: self for boxes, "
        "grabcut for the others", WEAK)
    mask_value: int | None = key(
        None, "in masks that are label maps: which value (or palette index) is the object", least=0)
    mask_colour: list[int] = key([], "in painted masks: which colour is the object: 255,0,0")
    query: list[str] = key(
        REQUIRED, "query picture(s), folders of them, patterns: 'a/*.jpg', or clip(s): a.mp4")
    recursive: bool = key(False, "look into sub-folders, too; they keep their place in out")
    video: bool = key(
        False, "the pictures of a folder are frames, in the order of their names; a clip is one "
        "anyway")
    memory: int = key(
        5, "video: read the last N frames in which something was found, too, beside the support",
        least=0)
    classes: list[str] = key(
        [], "name of each support's class, in the same order; several make a label map; a name "
        "that holds a comma stands in double quotes")
    bank: list[str] = key(
        [], "support bank(s) of save_bank=, instead of support= and mask=; several: a label map")
    presence: str = model_key("auto", PRESENCE_TEXT, PRESENCES)
    min_presence: float | None = key(
        None, "presence below which a query gets an empty mask, in [0, 1]; 0.5 by default where a "
        "trained head is asked, else off; out/presence.csv lists all", least=0)
    batch: int | str = speed_key(1, "queries computed at once, or auto", ("auto",), 1)
    threads: int = speed_key(0, "CPU threads of the model; 0 takes all cores", least=0)
    out: str = output_key(
        "masks", "folder for <query>_mask.png (0 and 255) and <query>_overlay.jpg")
    overwrite: bool = output_key(
        False, "write again what is there; false does what is missing or of other settings")
    save_bank: str | None = output_key(
        None, "write the encoded support, for bank=; with several classes a folder")

    def presence_kind(self) -> str:
        """Returns who is asked; see `ModelKeys`."""
        return self.presence

    def check(self) -> None:
        """Raises InputError for what is no colour, or no presence."""
        Pick.of(self.mask_value, self.mask_colour)
        check_presence(self.min_presence)
