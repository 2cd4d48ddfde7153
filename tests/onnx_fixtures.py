"""A small model with its ONNX graphs, for tests that have no time to export one.

`python tests/onnx_fixtures.py` makes tests/data/onnx_small.tar.xz; a slow test exports it anew.
"""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffews import DiffewsPipeline

ARCHIVE = Path(__file__).parent / "data" / "onnx_small.tar.xz"
SMALL = 32  # pixels that it works at; it takes multiples of 4


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """The folder of `weights` (51,948 random values) and `graphs`; never written to."""
    pytest.importorskip("onnxruntime", reason="pip install 'diffews[onnx]'")
    folder = tmp_path_factory.mktemp("small")
    shutil.unpack_archive(ARCHIVE, folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def torch_pipe(small) -> "DiffewsPipeline":
    """The small model in torch; never changed."""
    from diffews import load_pipeline

    return load_pipeline(small / "weights")


def make_small(folder: Path) -> None:
    """Writes the small model as a weight dir: two sizes, attention in the first and between."""
    import torch
    from diffusers import AutoencoderKL

    from diffews import DiffewsPipeline, DiffewsUNet

    torch.manual_seed(0)
    unet = DiffewsUNet(
        sample_size=16,
        block_out_channels=(12, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=[2, 2],
        norm_num_groups=4,
        use_linear_projection=True,
        upcast_attention=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    torch.nn.init.normal_(unet.conv_in_ref.weight, std=0.3)
    text = {key: torch.randn(1, words, 8) for key, words in (("eval", 2), ("train", 77))}
    DiffewsPipeline(unet.eval(), vae.eval(), text, image_size=SMALL).save_pretrained(folder)


if __name__ == "__main__":
    import tempfile

    from diffews.cli.main import main

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        make_small(place / "weights")
        words = [f"weight={place / 'weights'}", "format=onnx", "dynamic_size=true"]
        if main(["export", *words, f"out={place / 'graphs'}"]):
            sys.exit(1)
        # packed as one stream: weights that stand in both folders take their place once
        shutil.make_archive(str(ARCHIVE).removesuffix(".tar.xz"), "xztar", place)
    print(f"wrote {ARCHIVE}")
