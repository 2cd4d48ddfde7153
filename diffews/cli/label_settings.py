"""Keys of `diffews segment`: which files of labels are written."""

from dataclasses import dataclass

from diffews.cli.keys import output_key
from diffews.errors import InputError, nearest
from diffews.evaluation.labels import FORMATS


@dataclass(frozen=True)
class LabelKeys:
    """Which labels, for which tools."""

    format: list[str] = output_key(
        ["png"], "labels beside the masks, comma-separated: coco (annotations.coco.json), yolo "
        "(labels/, data.yaml), label_studio, labelme, palette (as VOC's), cutout (RGBA), scores "
        "(16-bit); masks of a finished run get more without the model")
    parts: bool = output_key(
        True, "labels: each connected part is an object; false: all of a class in a picture is one")
    least_area: int = output_key(
        1, "labels: leave out connected parts of fewer pixels, aloud; masks keep them", least=1)

    def check(self) -> None:
        """Raises InputError for a format that is not known."""
        for name in self.format:
            if name not in FORMATS:
                raise InputError(f"format={name!r} is not one of {', '.join(FORMATS)}"
                                 f"{nearest(name, FORMATS)}")
