"""The small VAE: latents in and out, what is refused, and `diffews distill-decoder`."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

import diffews
from diffews import InputError
from diffews.cli.tool_settings import DistillConfig
from diffews.images.masks import quantize, scores_and_limit
from diffews.images.paint import render_masks
from diffews.models.find import check_small_vae, hash_vae
from diffews.models.vae import decode_latents, encode_latents
from diffews.models.weights import load_small_vae, load_vae
from diffews.tools.distill import (
    crop_mask,
    decoder_multiply_adds,
    distill_decoder,
    imitation_loss,
    lesson,
    make_small_vae,
    random_mask,
)

TINY = Path(diffews.__file__).parent.parent / "weight" / "tiny"
FILE = "diffusion_pytorch_model.safetensors"
WORDS = [f"base={TINY / 'base'}", "image_size=32", "steps=60", "batch=4", "device=cpu"]


@pytest.fixture(scope="module")
def vae():
    """The tiny base's VAE; never changed."""
    return load_vae(TINY / "base", torch.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A decoder after a short training; never written to."""
    out = tmp_path_factory.mktemp("made") / "decoder"
    config = DistillConfig(image_size=32, steps=60, batch=4, blocks=[3, 1, 0], device="cpu")
    distill_decoder(config, TINY / "base", out)
    return out


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made, tmp_path / "own")


@pytest.fixture
def masks():
    """masks(3): that many drawn masks of 64 x 64 that no training saw."""
    return lambda count: torch.from_numpy(
        np.stack([random_mask(64, np.random.default_rng([9, i])) for i in range(count)])
    )


def load(folder, vae, part="decoder", **keys):
    return load_small_vae(folder, part, vae, **keys)


def rewrite(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def segmented(rgb):
    scores, limits = scores_and_limit(quantize(rgb).float() / 255, 0.25, "reference")
    return scores > limits[:, None, None]


# ---- latents in and out ----


@torch.no_grad()
def test_the_vae_of_the_base_computes_what_it_always_did(vae):
    images = torch.rand(2, 3, 32, 48, generator=torch.manual_seed(0)) * 2 - 1
    latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(encode_latents(vae, images), latents)
    assert torch.equal(
        decode_latents(vae, latents), vae.decode(latents / vae.config.scaling_factor).sample
    )


@torch.no_grad()
def test_a_small_vae_has_scaled_latents_already(vae):
    small = make_small_vae(vae, 4, [1, 0, 0]).eval()
    images = torch.rand(2, 3, 32, 48, generator=torch.manual_seed(0)) * 2 - 1
    latents = encode_latents(small, images)
    assert latents.shape == (2, 4, 8, 12)
    assert torch.equal(latents, small.encoder(images))
    assert torch.equal(decode_latents(small, latents), small.decoder(latents))
    assert decode_latents(small, latents).shape == images.shape


# ---- the command ----


def test_the_command_makes_a_small_vae_and_the_same_bytes_again(run, made, vae, tmp_path):
    out = tmp_path / "decoder"
    outcome = run("distill-decoder", *WORDS, f"out={out}")
    assert outcome.code == 0, outcome
    ratio = decoder_multiply_adds(load(out, vae)) / decoder_multiply_adds(vae)
    assert f"wrote {out}: " in outcome.out and f"{ratio:.3f} of the VAE's" in outcome.out
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "diffews.json", FILE]
    assert (out / FILE).read_bytes() == (made / FILE).read_bytes()
    assert {tensor.dtype for tensor in load_file(out / FILE).values()} == {torch.float16}


def test_another_seed_makes_another_decoder(run, made, tmp_path):
    assert run("distill-decoder", *WORDS, "steps=1", "seed=1", f"out={tmp_path / 'one'}").code == 0
    one, other = load_file(tmp_path / "one" / FILE), load_file(made / FILE)
    assert not torch.equal(one["decoder.layers.0.weight"], other["decoder.layers.0.weight"])


def test_the_record_says_what_was_imitated(made):
    record = json.loads((made / "diffews.json").read_text())
    assert (record["part"], record["vae_sha256"]) == ("decoder", hash_vae(TINY / "base"))
    assert (record["steps"], record["seed"], record["image_size"]) == (60, 0, 32)
    assert (
        record["config"]["blocks"] == [3, 1, 0] and record["versions"]["torch"] == torch.__version__
    )
    assert (made / record["base"]).resolve() == TINY / "base"


@torch.no_grad()
def test_training_brings_it_closer_to_the_vae_on_masks_it_did_not_see(made, vae, masks):
    torch.manual_seed(0)  # the weights it started from
    start = make_small_vae(vae, 12, [3, 1, 0]).eval()
    latents, target = lesson(vae, masks(16), torch.Generator().manual_seed(5))
    before, after = (
        imitation_loss(decode_latents(small, latents), target) for small in (start, load(made, vae))
    )
    assert after < before / 2


def test_masks_of_a_folder_are_trained_on(run, made, tmp_path):
    (tmp_path / "maps" / "deep").mkdir(parents=True)
    cv2.imwrite(
        str(tmp_path / "maps" / "deep" / "a.png"), random_mask(50, np.random.default_rng(0)) * 7
    )
    words = [*WORDS, "steps=2", f"masks={tmp_path / 'maps'}", f"out={tmp_path / 'one'}"]
    assert run("distill-decoder", *words, "blocks=1,0,0", "channels=4").code == 0
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["num_decoder_blocks"] == [1, 0, 0] and config["decoder_block_out_channels"] == [
        4,
        4,
        4,
    ]


# ---- lessons ----


def test_drawn_masks_are_of_every_size(masks):
    shares = masks(200).float().mean((1, 2))
    assert masks(3).dtype == torch.uint8 and masks(200).max() == 1
    assert shares.quantile(0.1) < 0.02 and shares.quantile(0.9) > 0.3
    assert torch.equal(masks(3), masks(3))


def test_a_crop_has_one_class_of_the_map():
    classes = np.zeros((40, 60), np.uint8)
    classes[:, 20:40], classes[:, 40:] = 3, 255
    crops = [crop_mask(classes, 32, np.random.default_rng(seed)) for seed in range(40)]
    assert {crop.shape for crop in crops} == {(32, 32)} and {int(crop.max()) for crop in crops} == {
        0,
        1,
    }
    assert not any(
        (crop[:, :-1] > crop[:, 1:]).any() and (crop[:, -1:]).any() for crop in crops
    )  # one band, not two
    assert not crop_mask(np.zeros((5, 9), np.uint8), 8, np.random.default_rng(0)).any()


def test_a_lesson_is_what_the_vae_decodes(vae, masks):
    latents, target = lesson(vae, masks(6), torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1), target
        )
        clean = encode_latents(vae, render_masks(masks(6)))
    assert not any(torch.equal(one, other) for one, other in zip(latents, clean, strict=True))


# ---- what is refused ----


def test_a_folder_that_does_not_fit_is_refused(own, vae, tmp_path):
    def refusal(folder=own, part="decoder", **keys):
        with pytest.raises(InputError) as error:
            load(folder, vae, part, **keys)
        assert str(error.value).startswith(f"{part}={folder}: ") and "\n" not in str(error.value)
        return str(error.value)

    assert "no such folder" in refusal(tmp_path / "none")
    assert "config.json does not exist" in refusal(tmp_path)
    assert "'AutoencoderKL'" in refusal(TINY / "base" / "vae")
    assert "only its decoder was trained" in refusal(part="encoder")
    assert "distilled from another VAE" in refusal(vae_sha256="0" * 64)
    assert isinstance(load(own, vae, vae_sha256=hash_vae(TINY / "base")), AutoencoderTiny)
    rewrite(own / "config.json", latent_channels=16)
    assert "16 latent channels" in refusal()
    rewrite(own / "config.json", latent_channels=4, num_decoder_blocks=[3, 1, 0, 0])
    assert "8 pixels a latent" in refusal()
    rewrite(
        own / "config.json", num_decoder_blocks=[3, 1, 0], decoder_block_out_channels=[10, 10, 10]
    )
    assert "does not load into AutoencoderTiny" in refusal()
    (own / FILE).unlink()
    assert f"no {FILE} in it" in refusal()


def test_an_encoder_is_measured_by_its_own_blocks(own, vae):
    (own / "diffews.json").unlink()
    assert isinstance(load(own, vae, "encoder"), AutoencoderTiny)
    rewrite(own / "config.json", num_encoder_blocks=[0, 0])
    with pytest.raises(InputError, match="2 pixels a latent, .*has 4"):
        check_small_vae(own, "encoder", vae.config, None)


def test_bad_input_of_the_command_is_refused(refused, made, tmp_path):
    out = f"out={tmp_path / 'new'}"
    assert "base= is missing" in refused("distill-decoder", out)
    assert "out= is missing" in refused("distill-decoder", *WORDS)
    assert f"out={made} exists" in refused("distill-decoder", *WORDS, f"out={made}")
    assert "no such folder" in refused("distill-decoder", out, f"base={tmp_path / 'none'}")
    assert "image_size=30 is not a multiple of 4" in refused(
        "distill-decoder", *WORDS, out, "image_size=30"
    )
    assert "3 sizes" in refused("distill-decoder", *WORDS, out, "blocks=3,1")
    assert "must be at least 0" in refused("distill-decoder", *WORDS, out, "blocks=3,-1,0")
    assert "lr=0.0 must be above 0" in refused("distill-decoder", *WORDS, out, "lr=0")
    assert "no PNG in it" in refused("distill-decoder", *WORDS, out, f"masks={tmp_path}")
    assert "batch=1 must be at least 2" in refused("distill-decoder", *WORDS, out, "batch=1")
    assert not (tmp_path / "new").exists()


# ---- the shipped decoder ----


@torch.no_grad()
def test_the_shipped_decoder_agrees_with_the_vae_at_a_quarter_of_the_work(vae, masks):
    small = load(TINY / "decoder", vae, vae_sha256=hash_vae(TINY / "base"))
    assert decoder_multiply_adds(small) <= decoder_multiply_adds(vae) / 4
    latents = encode_latents(vae, render_masks(masks(64)))
    same = segmented(decode_latents(small, latents)) == segmented(decode_latents(vae, latents))
    assert same.float().mean() >= 0.99
