"""The settings of every command, from which `diffews COMMAND --help` is made.

One dataclass a command, one line a key; what a key can say of itself is in `keys.py`. Classes whose
name ends in Keys are shared by several commands. The docstring of a command's class is its help:
what it does, and examples.
"""

from dataclasses import dataclass
from typing import Any

from diffews.cli.keys import (
    BYTES, CHECKOUT, REQUIRED, data_key, key, list_key, model_key, output_key, rounding_key,
    speed_key, training_key)
from diffews.cli.label_settings import LabelKeys, VideoKeys
from diffews.data.registry import BENCHMARKS, SPLITS_SOURCES, check_fold
from diffews.data.weak_masks import PROMPTS
from diffews.errors import InputError
from diffews.images.drawn_masks import Pick
from diffews.images.masks import THRESHOLD_RULES, check_threshold
from diffews.training import LR_END
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant

DTYPES = ("fp32", "bf16", "fp16")
DATASETS = str(CHECKOUT / "datasets")
DATA = "folder that holds the benchmark's folder"
BIN = "read pickled .bin weights (tensors only) where there is no safetensors file"
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
        False, "channels_last=true batch=auto, on a GPU tf32=true and half precision (bf16 where "
        "it is fast), on a CPU threads= all cores; batch=1, dtype=fp32 and threads=1 count as not "
        "given", changes_result=False)
    channels_last: bool = rounding_key(
        False, "memory layout in which convolutions are fastest; changes rounding")
    compile: bool = rounding_key(
        False, "torch.compile: minutes at the start, for long runs; changes rounding")
    low_memory: bool = rounding_key(
        False, "parts wait in main memory until they run, the VAE takes one picture at a time")
    tf32: bool = rounding_key(
        False, "GPU: 10-bit mantissas in products, kernels chosen by timing; changes rounding")

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

    def check(self) -> None:
        """Raises InputError for a threshold that cannot be."""
        for threshold in (*self.relative_thresholds, *self.absolute_thresholds):
            check_threshold(threshold, "absolute")


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
class SegmentConfig(LabelKeys, VideoKeys, ModelKeys):
    """Segment pictures of your own: what the support's mask marks, in each query.

    diffews segment weight=weight/incontext support=cat.jpg mask=cat.png query=photos
    diffews segment weight=weight/incontext bank=cat.safetensors query=a.jpg,b.jpg format=coco,yolo
    """

    support: list[str] = key([], "support picture(s): a.jpg or a.jpg,b.jpg")
    mask: list[str] = key([], "their masks, in the same order: white on black, in any format")
    mask_value: int | None = key(
        None, "in masks that are label maps: which value (or palette index) is the object", least=0)
    mask_colour: list[int] = key([], "in painted masks: which colour is the object: 255,0,0")
    query: list[str] = key(
        REQUIRED, "query picture(s), folders of them, patterns: 'a/*.jpg', or clip(s): a.mp4")
    recursive: bool = key(False, "look into sub-folders, too; they keep their place in out")
    classes: list[str] = key(
        [], "name of each support's class, in the same order; several make a label map; a name "
        "that holds a comma stands in double quotes")
    bank: list[str] = key(
        [], "support bank(s) of save_bank=, instead of support= and mask=; several: a label map")
    batch: int | str = speed_key(1, "queries computed at once, or auto", ("auto",), 1)
    threads: int = speed_key(0, "CPU threads of the model; 0 takes all cores", least=0)
    out: str = output_key(
        "masks", "folder for <query>_mask.png (0 and 255) and <query>_overlay.jpg")
    overwrite: bool = output_key(
        False, "write again what is there; false does what is missing or of other settings")
    save_bank: str | None = output_key(
        None, "write the encoded support, for bank=; with several classes a folder")

    def check(self) -> None:
        """Raises InputError for what is no colour."""
        Pick.of(self.mask_value, self.mask_colour)


@dataclass(frozen=True)
class TrainConfig(BenchmarkKeys):
    """Train a UNet on the classes that are not the fold's, by the reference's recipe.

    diffews train base=weight/sd21-base fold=0 shots=7 out=weight/mine_fold0
    diffews train config=configs/tiny.yaml base=weight/tiny/base fold=1 out=weight/tiny_fold1
    """

    fold: int | None = key(
        0, "fold whose classes are never trained on; null trains on all classes", least=0)
    shots: int = key(1, "most support images of an episode; each batch draws 1 .. shots", least=1)
    mix: list[str] = data_key(
        [], "train on several benchmarks, of which no class is held out: name:weight,name:weight")
    pairs: bool = data_key(
        False, "episodes 2k and 2k + 1 share the query and ask for two of its classes")
    weak_masks: float = data_key(
        0.0, "share of the episodes whose supports show a weak mask: a box, scribble, points, "
        "or one too small or too large", least=0)
    cache: str | None = data_key(
        None, "folder of the latent cache, filled before step 1; none by default",
        changes_result=False)

    base: str = model_key(
        REQUIRED, "folder or hub:owner/name of a base; its unet/config.json alone starts from "
        "nothing",
        counted_as="base_sha256")
    init: str | None = model_key(
        None, "weight dir or checkpoint whose UNet to start from: a second stage",
        counted_as="start_sha256")
    decoder: str | None = model_key(
        None, "pixel_loss=: small VAE whose decoder replaces the base's",
        counted_as="decoder_sha256")
    allow_bin: bool = model_key(False, BIN, changes_result=False)
    image_size: int = model_key(512, "side in pixels, a multiple of the VAE's factor", least=1)
    interaction: str = model_key(
        "kv_fusion", "how query and support interact (paper, section 4.1)", INTERACTIONS)
    injection: str = model_key(
        "concatenation", "how the support's mask enters (section 4.2)", INJECTIONS)
    supervision: str = model_key(
        "white_on_black", "how the query's mask is painted as a target (section 4.3)", SUPERVISIONS)
    generation: str = model_key("one_step", "how the mask is generated (section 4.4)", GENERATIONS)
    beta_start: float = model_key(0.00085, "first beta of the multi-step generations")
    beta_end: float = model_key(
        0.012, "last beta of the multi-step generations; the paper's larger pair is 0.0272, 0.384")
    lora: int = model_key(
        0, "rank of additions to attention that train instead of the weights; 0 is off", least=0)

    steps: int = training_key(20000, "optimizer steps", least=1)
    accumulate: int = training_key(4, "forward passes in an optimizer step", least=1)
    seed: int = training_key(
        42, "seed of episodes, number of shots, noise, and weights made from nothing", least=0)
    lr: float = training_key(1e-5, "highest learning rate")
    schedule: str = training_key(
        "polynomial", "linear decay to 1e-7; one_cycle rises and falls, and moves beta1",
        ("polynomial", "one_cycle"))
    warmup: float | None = training_key(
        None, "share of the steps in which the rate rises; one_cycle 0.1, else 0", least=0)
    optimizer: str = training_key(
        "adamw", "AdamW; adamw8bit needs bitsandbytes", ("adamw", "adamw8bit"))
    weight_decay: float = training_key(0.01, "AdamW's weight decay", least=0)
    beta1: float = training_key(0.9, "AdamW's first momentum", least=0)
    beta2: float = training_key(0.999, "AdamW's second momentum", least=0)
    clip: float = training_key(1.0, "largest norm of the gradient", least=0)
    pixel_loss: float = training_key(
        0.0, "weight of a loss on the decoded mask (cross-entropy and Dice) beside the one on "
        "latents; the weights are then recorded with threshold 0.5; 0 is off", least=0)
    pixel_from: int = training_key(0, "steps before pixel_loss= begins", least=0)
    ema: float = training_key(
        0.0, "decay of an average of the weights, which is what is published; 0 is off", least=0)
    sample_posterior: bool = training_key(
        True, "draw latents from the VAE's posterior; false takes its mean")

    device: str = speed_key(
        "auto", "the accelerator if there is one, or cpu", ("auto", "cpu"), changes_result=False)
    dtype: str = speed_key(
        "auto", "mixed precision; auto is fp16 on a GPU (the reference's) and fp32 on the CPU",
        ("auto", *DTYPES))
    batch: int = speed_key(
        1, "episodes in a forward pass, on each process", least=1, counted_as="global_batch")
    checkpointing: bool = speed_key(
        True, "compute activations again in the backward pass: less memory, a third slower")
    threads: int = speed_key(1, "CPU threads of the model", least=1)
    workers: int = speed_key(
        2, "processes that read pictures; never changes results", least=0, changes_result=False)

    out: str = output_key(REQUIRED, "folder for checkpoints and, at the end, unet/unet")
    resume: str | None = output_key(
        None, "latest: go on from the newest complete checkpoint, if any", ("latest", None))
    stop_at: int | None = output_key(None, "stop after this step, with a checkpoint", least=1)
    checkpoint_every: int = output_key(2000, "steps from one checkpoint to the next", least=1)
    keep: int = output_key(2, "checkpoints that are kept", least=1)
    validate_every: int | None = output_key(
        None, "steps between validations; none by default", least=1)
    validate_episodes: int = output_key(100, "episodes of a validation", least=1)
    validate_on: str = output_key(
        "seen", "seen: training classes on the test pictures; novel: the test fold",
        ("seen", "novel"))
    tracker: str = output_key("none", "where accelerate logs to", ("none", "tensorboard"))

    def check(self) -> None:
        """Raises InputError for settings that cannot be trained with."""
        Variant.of(vars(self))  # refuses pairs of keys that make no variant
        if self.interaction == "cross_attention" and self.cache is not None:
            raise InputError(
                "cache= keeps latents, and interaction=cross_attention reads pixels; leave cache= "
                "out")
        self._check_pixel_loss()
        if self.weak_masks > 1:
            raise InputError(f"weak_masks={self.weak_masks} is a share of the episodes, at most 1")
        for name in ("warmup", "beta1", "beta2", "ema"):
            if (getattr(self, name) or 0) >= 1:
                raise InputError(f"{name}={getattr(self, name)} must be below 1")
        for name, above in (("lr", LR_END if self.schedule == "polynomial" else 0), ("clip", 0)):
            if getattr(self, name) <= above:
                raise InputError(f"{name}={getattr(self, name)} must be above {above}")
        if round((self.warmup or 0) * self.steps) >= self.steps:
            none_left = f"warmup={self.warmup} leaves no step of steps={self.steps} to fall"
            raise InputError(f"{none_left}; make it smaller")

    def _check_pixel_loss(self) -> None:
        """Raises InputError for keys of a pixel loss without one, or a variant without a mask."""
        if not self.pixel_loss:
            given = {"decoder": self.decoder is not None, "pixel_from": self.pixel_from > 0}
            for name in (name for name, is_given in given.items() if is_given):
                raise InputError(f"{name}= is of the pixel loss, which is off; give pixel_loss=1")
            return
        for name, needed, why in (
                ("supervision", "white_on_black", "the picture is the mask"),
                ("generation", "one_step", "the answer of a step is a mask")):
            if getattr(self, name) != needed:
                raise InputError(
                    f"pixel_loss={self.pixel_loss:g} needs {name}={needed}, where {why}, "
                    f"not {name}={getattr(self, name)}")
        if self.pixel_from >= self.steps:
            raise InputError(f"pixel_from={self.pixel_from} leaves no step of steps={self.steps}")
