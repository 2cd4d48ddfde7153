"""The paper's four choices, each one small object that the config names.

The defaults are the released model's.
"""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from diffews.errors import InputError, nearest

if TYPE_CHECKING:
    from diffews.models.unet import DiffewsUNet
    from diffews.variants.generation import Generation
    from diffews.variants.injection import Injection
    from diffews.variants.interaction import Interaction
    from diffews.variants.supervision import Supervision

INTERACTIONS = ("kv_fusion", "qkv_fusion", "cross_attention")
INJECTIONS = (
    *("concatenation", "multiplication_rgb", "multiplication_latent"),
    *("attention_mask", "addition"),
)
SUPERVISIONS = ("white_on_black", "real_foreground", "black_foreground", "mask_over_image")
GENERATIONS = ("one_step", "multi_step_image_to_mask", "multi_step_noise_to_mask")


@dataclass(frozen=True)
class Variant:
    """One point of the paper's space of designs, as kept beside weights (section 4, A.2, A.3)."""

    interaction: str = "kv_fusion"
    injection: str = "concatenation"
    supervision: str = "white_on_black"
    generation: str = "one_step"
    beta_start: float = 0.00085  # of the multi-step generations; Stable Diffusion's
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        """Raises InputError for a word that is none of its key's."""
        choices = {"interaction": INTERACTIONS, "injection": INJECTIONS,
                   "supervision": SUPERVISIONS, "generation": GENERATIONS}
        for name, words in choices.items():
            value = getattr(self, name)
            if value not in words:
                known = f"{', '.join(words)}{nearest(str(value), words)}"
                raise InputError(f"{name}={value!r} is not one of {known}")

        if not 0 < self.beta_start <= self.beta_end <= 1:
            raise InputError(f"beta_start={self.beta_start}, beta_end={self.beta_end}; "
                             "give 0 < beta_start <= beta_end <= 1")

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Variant":
        """Picks the variant's keys out of a config or a record; the others take their default."""
        names = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    @classmethod
    def read(cls, record: Any) -> "Variant":
        """Checks a variant that was written beside weights; None stands for the released model.

        Raises:
            InputError: for a key or a value that is none of a variant's.

        """
        names = {item.name: type(item.default) for item in fields(cls)}
        if not isinstance(record, dict | None):
            raise InputError(f"variant={record!r} is no set of keys")
        for name, value in (record or {}).items():
            if name not in names:
                raise InputError(f"unknown key {name!r} in variant{nearest(name, names)}")
            if not isinstance(value, names[name]):
                kind = names[name].__name__
                raise InputError(f"{name}={value!r} in variant is not of type {kind}")
        return cls(**(record or {}))

    def asdict(self) -> dict[str, Any]:
        """Returns the keys and their values."""
        return asdict(self)

    def build(self) -> "Method":
        """Makes the objects that the words name."""
        from diffews.variants.generation import make_generation
        from diffews.variants.injection import INJECTION
        from diffews.variants.interaction import INTERACTION
        from diffews.variants.supervision import SUPERVISION

        return Method(
            INTERACTION[self.interaction], INJECTION[self.injection], SUPERVISION[self.supervision],
            make_generation(self.generation, self.beta_start, self.beta_end))


@dataclass(frozen=True)
class Method:
    """What a model does with a support set and a query: one object for each of the four choices."""

    interaction: "Interaction"
    injection: "Injection"
    supervision: "Supervision"
    generation: "Generation"

    def freeze_unused(self, unet: "DiffewsUNet") -> None:
        """Freezes the stem that the loss does not reach.

        Distributed training needs a gradient for every weight that it trains.
        """
        used = {"conv_in_ref" if self.generation.doubles_input else "conv_in"}
        if not self.interaction.reads_pixels:
            used.add("conv_in_ref" if self.injection.doubles_input else "conv_in")
        for stem in {"conv_in", "conv_in_ref"} - used:
            unet.get_submodule(stem).requires_grad_(False)
