"""The settings of the commands that train: a UNet, or a presence head on a frozen one."""

from dataclasses import dataclass

from diffews.cli.keys import (
    REQUIRED, data_key, key, model_key, output_key, rounding_key, speed_key, training_key)
from diffews.cli.settings import BIN, DTYPES, BenchmarkKeys, ModelKeys
from diffews.errors import InputError
from diffews.training import LR_END
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant

KINDS = ("full", "fast")  # of a presence head


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
    checkpointing: bool | str = speed_key(
        "auto", "compute activations again in the backward pass: less memory, a third slower; "
        "auto: on a GPU whose memory is counted to be too small without", ("auto",),
        changes_result=False)
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


@dataclass(frozen=True)
class TrainPresenceConfig(BenchmarkKeys, ModelKeys):
    """Train a head on frozen weights that says whether a query holds the class at all.

    diffews train-presence weight=weight/mine_fold0 out=weight/mine_fold0
    diffews train-presence weight=weight/coco_fold0 kind=fast queries=2000 out=runs/with_head
    """

    queries: int = key(
        8000, "queries to learn from, each once with its class and once with an absent one",
        least=2)
    weight: str = model_key(
        REQUIRED, "weight dir of the variant interaction=kv_fusion", counted_as="weight_sha256")
    kind: str = model_key(
        "full", "full: one more support pass on each query, with its own mask; fast: none", KINDS)
    hidden: int = training_key(32, "width of the head's networks", least=1)
    seed: int = training_key(0, "seed of queries, supports and networks", least=0)
    batch: int = rounding_key(16, "queries computed at once", least=1)
    threads: int = rounding_key(1, "CPU threads of the model", least=1)
    workers: int = speed_key(
        2, "processes that read pictures; never changes results", least=0, changes_result=False)
    out: str | None = output_key(
        None, "weight dir that gets presence/; by default the one that is read, else one of the "
        "same weights is made")

    def presence_kind(self) -> str:
        """Returns that no other head is asked."""
        return "off"

    def check(self) -> None:
        """Raises InputError for keys that a head does not heed."""
        if self.threshold not in (None, 0.25) or self.threshold_rule != "reference":
            raise InputError(
                "a head compares masks at threshold=0.25 threshold_rule=reference, whatever is "
                "asked of it later; leave these keys out")
