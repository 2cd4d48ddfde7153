"""The settings of every command; `diffews COMMAND --help` is made from them."""

from dataclasses import dataclass
from typing import Any

from diffews.cli.keys import CHECKOUT, REQUIRED, describe, key, load
from diffews.data.registry import BENCHMARKS, RASTERIZERS, SPLITS_SOURCES, check_fold
from diffews.errors import InputError
from diffews.evaluation.published import SETTINGS
from diffews.images.masks import THRESHOLD_RULES, check_threshold
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant

__all__ = ["CHECKOUT", "REQUIRED", "describe", "key", "load"]

DTYPES = ("fp32", "bf16", "fp16")
ORDERS = ("list", "best", "worst", "both", "spread")
SHAPES = {"sd21": 8, "tiny": 4}  # what `benchmark` makes with random weights, and pixels of a latent
LR_END = 1e-7  # where the polynomial decay ends, the reference's value


@dataclass
class BenchmarkKeys:
    """Which episodes."""

    benchmark: str = key("coco20i", "data set and protocol", BENCHMARKS)
    data: str = key(str(CHECKOUT / "datasets"), "folder that holds the benchmark's folder")
    splits: str = key("auto", "image lists: those of the data folder if there are any, else built in", SPLITS_SOURCES)
    fold: int | None = key(
        None, "fold whose classes are novel; by default the N of `_fold<N>` in the weight's name", least=0
    )
    shots: int = key(1, "support images of an episode", least=1)
    images: str | None = key(None, "coco20i: 2017 finds the pictures in COCO 2017; coco_json: folder of the pictures")
    annotations: str | None = key(None, "coco_json: the JSON file")
    dataset: str | None = key(None, "detectron2: name in its catalogue")
    folds: int | None = key(None, "coco_json, folder, detectron2: number of folds, 4 by default", least=1)
    novel: list[str] = key([], "coco_json, folder, detectron2: names of the novel classes, instead of a fold")

    def check(self) -> None:
        """Raises InputError for a fold that the benchmark does not have."""
        if self.fold is not None:
            check_fold(self.benchmark, self.fold)

    def options(self) -> dict[str, Any]:
        """Returns the keys that only some benchmarks take."""
        return {name: getattr(self, name) for name in ("images", "annotations", "dataset", "folds", "novel")}


@dataclass
class ListKeys(BenchmarkKeys):
    """Which list of test episodes."""

    episodes: int | None = key(None, "use the first N episodes of the list; all by default", least=1)
    episodes_file: str | None = key(None, "use the list that `diffews episodes save=FILE` wrote")
    drawn_shots: int | None = key(
        None, "draw the list for so many shots and use the first; same queries for all", least=1
    )


@dataclass
class ModelKeys:
    """Which weights, and how they run."""

    weight: str | None = key(
        None, "weight dir: DIR/unet/unet, DIR/unet or DIR; by default weight/tiny/shapes_fold<fold>"
    )
    base: str | None = key(
        None, "folder or hub id with VAE and text; by default as recorded in, or found beside, the weight dir"
    )
    allow_bin: bool = key(False, "read pickled .bin weights (tensors only) where there is no safetensors file")
    device: str = key("auto", "auto, cpu, cuda, cuda:1, mps ...")
    dtype: str = key("fp32", "precision of the UNet; fp16 keeps the VAE in fp32", DTYPES)
    image_size: int | None = key(
        None, "side in pixels, a multiple of the VAE's factor; by default as recorded, else 512", least=1
    )
    channels_last: bool = key(False, "memory layout in which convolutions are fastest; changes rounding")
    compile: bool = key(False, "torch.compile: minutes at the start, for long runs; changes rounding")
    low_memory: bool = key(False, "parts wait in main memory until they run, the VAE takes one picture at a time")
    tf32: bool = key(False, "GPU: matrix products with a 10-bit mantissa, kernels chosen by timing; changes rounding")
    fast: bool = key(
        False,
        "channels_last=true batch=auto, on a GPU tf32=true and half precision (bf16 where it is fast), on a CPU "
        "threads= all cores; batch=1, dtype=fp32 and threads=1 count as not given",
    )
    encoder: str | None = key(None, "small VAE (AutoencoderTiny) whose encoder takes the place of the base's")
    decoder: str | None = key(None, "small VAE whose decoder does, as `diffews distill-decoder` makes it")
    denoising_steps: int = key(10, "of weights that were trained with a multi-step generation", least=1)
    ensemble: int = key(1, "predictions that are averaged, for generation=multi_step_noise_to_mask", least=1)
    threshold: float = key(0.25, "share of the maximum (or, if absolute, the score in [0, 1)) that foreground exceeds")
    threshold_rule: str = key(
        "reference", "maximum over RGB (released code), of the mean image (paper), or none", THRESHOLD_RULES
    )

    def check(self) -> None:
        """Raises InputError for a threshold or a number of steps that cannot be."""
        check_threshold(self.threshold, self.threshold_rule)
        if self.denoising_steps >= 1000:
            raise InputError(f"denoising_steps={self.denoising_steps} must be below 1000, the timesteps of training")


@dataclass
class EvalConfig(ListKeys, ModelKeys):
    """Evaluate weights on few-shot episodes; an interrupted run goes on where it stopped."""

    out: str | None = key(None, "folder for episodes.jsonl and result.json; by default results/<weight>/<settings>")
    batch: int | str = key(
        1,
        "episodes computed at once, or auto; 1 is exact, more may flip pixels that sit on the threshold",
        ("auto",),
        1,
    )
    workers: int = key(
        2, "processes that decode pictures; 0 decodes in the main process; never changes results", least=0
    )
    threads: int = key(1, "CPU threads of the model; results are the same bytes at the same number", least=1)
    kv_sampling: int | None = key(
        None,
        "keep a random subset of the support's keys and values, as many as N shots have (paper, section 4.5)",
        least=1,
    )
    relative_thresholds: list[float] = key([], "also count at these shares of the maximum: 0.2,0.3; by threshold_rule")
    absolute_thresholds: list[float] = key([], "also count at these scores")
    extra_metrics: bool = key(
        False, "also count at the pictures' own size, and boundary IoU; decodes each query twice"
    )
    pictures: int = key(0, "write support | query | prediction | truth panels of the first N episodes", least=0)
    save_masks: bool = key(False, "write each predicted mask as out/masks/<index>.png (0 and 255)")

    def check(self) -> None:
        """Raises InputError for a threshold that cannot be."""
        for threshold in (*self.relative_thresholds, *self.absolute_thresholds):
            check_threshold(threshold, "absolute")


@dataclass
class BaselinesConfig(ListKeys, ModelKeys):
    """Score what needs no model (all foreground, a copied mask, every object), and a model with swapped supports."""

    runs: list[str] = key([], "folders of `diffews eval` to show in the same table")
    out: str | None = key(None, "JSON file for the figures; none by default")
    threads: int = key(1, "CPU threads of the model", least=1)


@dataclass
class EpisodesConfig(ListKeys):
    """Print the test episodes as JSON: [[class_id, query, [supports]], ...]."""

    fold: int | None = key(0, "fold whose classes are novel", least=0)
    save: str | None = key(None, "also write the list with its hash as JSON, for episodes_file=")


@dataclass
class SegmentConfig(ModelKeys):
    """Segment pictures of your own: what the mask marks in the support is found in each query."""

    support: list[str] = key([], "support picture(s): a.jpg or a.jpg,b.jpg")
    mask: list[str] = key([], "their masks, in the same order: one channel of {0, 1} or {0, 255}")
    query: list[str] = key(REQUIRED, "query picture(s), or folders of them")
    classes: list[str] = key([], "name of each support's class, in the same order; several make a label map")
    bank: list[str] = key(
        [], "support bank(s) that save_bank= wrote, instead of support= and mask=; several: a label map"
    )
    save_bank: str | None = key(None, "write the encoded support, for bank=; with several classes a folder")
    out: str = key("masks", "folder for <query>_mask.png (0 and 255) and <query>_overlay.jpg")
    batch: int | str = key(1, "queries computed at once, or auto", ("auto",), 1)
    threads: int = key(0, "CPU threads of the model; 0 takes all cores", least=0)


@dataclass
class InitBaseConfig:
    """Turn a Stable Diffusion 1.x or 2.x folder into a base: conv_in_ref added, the empty prompt encoded."""

    sd: str = key(REQUIRED, "folder or hub id of a Stable Diffusion pipeline (unet, vae, text_encoder, tokenizer)")
    out: str = key(REQUIRED, "base to write; must not exist")
    allow_bin: bool = key(False, "read pickled .bin weights (tensors only) where there is no safetensors file")
    dtype: str = key("fp32", "precision in which the base is stored", DTYPES)


@dataclass
class PrepareConfig:
    """Make a benchmark's masks or lists from the official downloads, then check them against the lists."""

    benchmark: str = key("coco20i", "what to prepare", ("coco20i", "lvis92i", "pascal5i"))
    data: str = key(str(CHECKOUT / "datasets"), "folder that holds the benchmark's folder")
    parts: list[str] = key([], "coco20i: train2014,val2014; lvis92i: train,val; all by default")
    rasterizer: str = key("pycocotools", "coco20i: how polygons are filled; fillpoly truncates to pixels", RASTERIZERS)
    least_pixels: int = key(2048, "coco20i: pixels from which the lists count a class in a picture", least=1)
    sbd: str | None = key(None, "pascal5i: folder of SBD's dataset, which holds cls/*.mat")
    workers: int = key(0, "processes; 0 takes all cores", least=0)


@dataclass
class CheckConfig(BenchmarkKeys):
    """Test a data folder: files, sizes, values, listed classes. Exit code 0: good, 1: not."""

    fold: int | None = key(0, "fold whose lists are tested", least=0)
    parts: list[str] = key(["test"], "splits to test: train,val,test")
    workers: int = key(0, "processes; 0 takes all cores", least=0)


@dataclass
class TableConfig:
    """Collect finished evaluations into the paper's tables, beside the published figures."""

    runs: list[str] = key(REQUIRED, "folders of `diffews eval`: DIR,DIR,...")
    format: str = key("md", "how the tables are written", ("md", "csv", "latex"))
    setting: str = key("all", "which published rows: novel classes unseen, or seen in training", SETTINGS)


@dataclass
class FigureConfig:
    """Draw episodes of a finished evaluation: supports, query, prediction, truth; predictions are computed again."""

    run: str = key(REQUIRED, "folder of `diffews eval`")
    out: str | None = key(None, "picture to write, .png or .jpg; by default figure.png in the run's folder")
    count: int = key(4, "episodes; with order=both so many of each", least=1)
    order: str = key(
        "list", "the first, those of highest or lowest IoU, both, or spread evenly over the quantiles of IoU", ORDERS
    )
    index: list[int] = key([], "these episodes instead, counted from 0: 3,17")

    def check(self) -> None:
        """Raises InputError for a file name that says no picture format."""
        if self.out is not None and not self.out.lower().endswith((".png", ".jpg", ".jpeg")):
            raise InputError(f"out={self.out} does not end in .png or .jpg")


@dataclass
class ExportConfig:
    """Write trained weights as a small folder to hand on: unet/unet in half precision, and what was recorded."""

    weight: str = key(REQUIRED, "weight dir or checkpoint")
    base: str | None = key(None, "the base to record; by default the one that the weight dir names")
    out: str = key(REQUIRED, "folder to write; must not exist")
    dtype: str = key("fp16", "precision in which the weights are stored", DTYPES)


@dataclass
class TrainConfig(BenchmarkKeys):
    """Train a UNet on the classes that are not the fold's; the defaults are the reference's recipe."""

    base: str = key(REQUIRED, "folder or hub id of a base; unet/config.json without weights starts from nothing")
    fold: int | None = key(0, "fold whose classes are never trained on; null trains on all classes", least=0)
    shots: int = key(1, "most support images of an episode; each batch draws 1 .. shots", least=1)
    out: str = key(REQUIRED, "folder for checkpoints and, at the end, unet/unet")
    mix: list[str] = key([], "train on several benchmarks: name:weight,name:weight; none of their classes is held out")
    image_size: int = key(512, "side in pixels, a multiple of the VAE's factor", least=1)
    interaction: str = key("kv_fusion", "how query and support interact (paper, section 4.1)", INTERACTIONS)
    injection: str = key("concatenation", "how the support's mask enters (section 4.2)", INJECTIONS)
    supervision: str = key(
        "white_on_black", "what the query's mask looks like as a target (section 4.3)", SUPERVISIONS
    )
    generation: str = key("one_step", "how the mask is generated (section 4.4)", GENERATIONS)
    beta_start: float = key(0.00085, "of the multi-step generations")
    beta_end: float = key(0.012, "of the multi-step generations; the paper's larger pair is 0.0272, 0.384")
    steps: int = key(20000, "optimizer steps", least=1)
    batch: int = key(1, "episodes in a forward pass, on each process", least=1)
    accumulate: int = key(4, "forward passes in an optimizer step", least=1)
    seed: int = key(42, "of episodes, number of shots, VAE noise, and weights that start from nothing", least=0)
    lr: float = key(1e-5, "highest learning rate")
    schedule: str = key(
        "polynomial", "linear decay to 1e-7; one_cycle rises and falls, and moves beta1", ("polynomial", "one_cycle")
    )
    warmup: float | None = key(None, "share of the steps in which the rate rises; one_cycle 0.1, else 0", least=0)
    optimizer: str = key("adamw", "AdamW; adamw8bit needs bitsandbytes", ("adamw", "adamw8bit"))
    weight_decay: float = key(0.01, "of AdamW", least=0)
    beta1: float = key(0.9, "of AdamW", least=0)
    beta2: float = key(0.999, "of AdamW", least=0)
    clip: float = key(1.0, "largest norm of the gradient", least=0)
    dtype: str = key(
        "auto", "mixed precision; auto is fp16 on a GPU (the reference's) and fp32 on the CPU", ("auto", *DTYPES)
    )
    checkpointing: bool = key(True, "compute activations again in the backward pass: less memory, a third slower")
    sample_posterior: bool = key(True, "draw latents from the VAE's posterior; false takes its mean")
    pairs: bool = key(False, "episodes 2k and 2k + 1 share the query and ask for two of its classes")
    ema: float = key(0.0, "decay of an average of the weights, which is what is published; 0 is off", least=0)
    lora: int = key(0, "rank of low-rank additions to attention that train instead of the weights; 0 is off", least=0)
    allow_bin: bool = key(False, "read pickled .bin weights (tensors only) where there is no safetensors file")
    cache: str | None = key(None, "folder of the latent cache, filled before step 1; none by default")
    device: str = key("auto", "the accelerator if there is one, or cpu", ("auto", "cpu"))
    workers: int = key(2, "processes that read pictures; never changes results", least=0)
    threads: int = key(1, "CPU threads of the model", least=1)
    checkpoint_every: int = key(2000, "steps from one checkpoint to the next", least=1)
    keep: int = key(2, "checkpoints that are kept", least=1)
    resume: str | None = key(
        None, "latest: go on from the newest complete checkpoint, if there is any", ("latest", None)
    )
    stop_at: int | None = key(None, "stop after this step, with a checkpoint", least=1)
    validate_every: int | None = key(None, "steps between validations; none by default", least=1)
    validate_episodes: int = key(100, "episodes of a validation", least=1)
    validate_on: str = key(
        "seen", "seen: training classes on the test pictures; novel: the test fold", ("seen", "novel")
    )
    tracker: str = key("none", "where accelerate logs to", ("none", "tensorboard"))

    def check(self) -> None:
        """Raises InputError for settings that cannot be trained with."""
        if Variant.of(vars(self)).interaction == "cross_attention" and self.cache is not None:
            raise InputError("cache= keeps latents, and interaction=cross_attention reads pixels; leave cache= out")
        for name in ("warmup", "beta1", "beta2", "ema"):
            if (getattr(self, name) or 0) >= 1:
                raise InputError(f"{name}={getattr(self, name)} must be below 1")
        for name, above in (("lr", LR_END if self.schedule == "polynomial" else 0), ("clip", 0)):
            if getattr(self, name) <= above:
                raise InputError(f"{name}={getattr(self, name)} must be above {above}")
        if round((self.warmup or 0) * self.steps) >= self.steps:
            raise InputError(f"warmup={self.warmup} leaves no step of steps={self.steps} to fall; make it smaller")


@dataclass
class MakeShapesConfig:
    """Write the procedural benchmark of 80 classes in the COCO-20i layout (about 15 s)."""

    out: str = key(REQUIRED, "folder in which COCO2014/ is made")
    seed: int = key(0, "of the pictures; classes and folds are always the same", least=0)


@dataclass
class TinyBaseConfig:
    """Train the tiny base (VAE) from nothing on shapes; `diffews train config=configs/tiny.yaml` goes on."""

    data: str = key(str(CHECKOUT / "datasets"), "folder that holds COCO2014/ as `diffews make-shapes` writes it")
    out: str = key(REQUIRED, "base to write; must not exist")
    seed: int = key(0, "of weights, crops and the text embedding", least=0)
    steps: int = key(2500, "optimizer steps of each of the two stages", least=1)
    batch: int = key(12, "crops in a step, a quarter of them masks", least=4)


@dataclass
class BenchmarkConfig(ModelKeys):
    """Measure time, memory and arithmetic of episodes and training steps; the last line is JSON."""

    weight: str | None = key(None, "weight dir; by default random weights of `shapes`")
    shapes: str = key("sd21", "of the random weights: Stable Diffusion 2.1's, or those of weight/tiny", tuple(SHAPES))
    fast: bool = key(True, "what is compared to the plain way; see `diffews eval --help`. false: the keys as given")
    batch: int | str = key("auto", "episodes computed at once; the plain way takes 1", ("auto",), 1)
    threads: int = key(1, "CPU threads, of both ways", least=1)
    repeats: int = key(5, "timed runs of each way, in turns; their median counts", least=1)
    seconds: float = key(60.0, "after which a measurement stops, with at least one timed run of each way", least=0)
    train: bool = key(True, "also measure a training step, where the memory is there")

    def check(self) -> None:
        """Raises InputError for a size that the random VAE cannot take."""
        if self.weight is None:
            if self.base is not None:
                raise InputError("base= without weight=; give both, or shapes= for random weights")
            self.image_size = self.image_size or 512
            if self.image_size % SHAPES[self.shapes]:
                raise InputError(
                    f"image_size={self.image_size} is not a multiple of {SHAPES[self.shapes]}, the factor of the VAE"
                )


@dataclass
class DistillConfig:
    """Train a small decoder to imitate the base's on masks alone; `decoder=` then uses it."""

    base: str = key(REQUIRED, "folder or hub id of the base whose VAE is imitated")
    out: str = key(REQUIRED, "folder to write; must not exist")
    masks: str | None = key(None, "folder of mask PNGs, searched with its subfolders; by default shapes are drawn")
    image_size: int = key(64, "side of the masks in pixels, a multiple of the VAE's factor; Stable Diffusion: 256")
    channels: int = key(12, "channels of every layer; Stable Diffusion: 64", least=1)
    blocks: list[int] = key([], "residual blocks at each size, from the latent's up; by default 3, 1, then none")
    steps: int = key(2500, "optimizer steps", least=1)
    batch: int = key(8, "masks in a step", least=2)
    lr: float = key(5e-3, "highest learning rate")
    seed: int = key(0, "of weights, masks and noise", least=0)
    allow_bin: bool = key(False, "read pickled .bin weights (tensors only) where there is no safetensors file")
    device: str = key("auto", "auto, cpu, cuda, cuda:1, mps ...")
    threads: int = key(1, "CPU threads; the result is the same bytes at the same number", least=1)

    def check(self) -> None:
        """Raises InputError for settings that cannot be trained with."""
        if self.lr <= 0:
            raise InputError(f"lr={self.lr} must be above 0")
        if min(self.blocks, default=0) < 0:
            raise InputError(f"blocks={','.join(map(str, self.blocks))}: a number of blocks must be at least 0")
