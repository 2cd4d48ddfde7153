"""The tiny base: made by one command, loadable, small, and the start of a training from nothing."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import differing, reset_accelerate, weights

import diffews
from diffews import DiffewsUNet, load_pipeline
from diffews.cli.tool_settings import TinyBaseConfig
from diffews.data.registry import open_benchmark
from diffews.images.paint import render_masks
from diffews.models.weights import load_text, load_vae, start_unet
from diffews.tools.tiny import make_tiny_base, read_training_set
from diffews.training.step import TrainingStep
from diffews.variants import Variant

pytest_plugins = ("training_fixtures",)

TINY_CONFIG = Path(diffews.__file__).parent.parent / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def made(few_shapes, tmp_path_factory):
    """What the command makes after two steps of each stage; never written to."""
    out = tmp_path_factory.mktemp("made") / "base"
    make_tiny_base(TinyBaseConfig(data=str(few_shapes), steps=2, batch=8), out)
    return out


def test_the_command_makes_a_base_and_the_same_bytes_again(run, made, few_shapes, tmp_path):
    out = tmp_path / "base"
    outcome = run("make-tiny-base", f"data={few_shapes}", f"out={out}", "steps=2", "batch=8")
    assert outcome.code == 0 and outcome.out == f"wrote {out}\n"
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "image_encoder/config.json",
        "text.safetensors",
        "unet/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert all(
        (out / name).read_bytes() == (made / name).read_bytes()
        for name in names
        if name.endswith("tensors")
    )


def test_another_seed_makes_another_base(run, made, few_shapes, tmp_path):
    words = [f"data={few_shapes}", f"out={tmp_path / 'base'}", "steps=2", "batch=8", "seed=1"]
    assert run("make-tiny-base", *words).code == 0
    file = "vae/diffusion_pytorch_model.safetensors"
    assert "encoder.conv_in.weight" in differing(
        load_file(tmp_path / "base" / file), load_file(made / file)
    )
    assert not torch.equal(load_text(tmp_path / "base")["eval"], load_text(made)["eval"])


def test_its_latents_have_unit_deviation(made, few_shapes):
    vae = load_vae(made, torch.float32)
    benchmark = open_benchmark("coco20i", few_shapes, 0, "train")
    decoded = [
        benchmark.decode(samples[0], class_id) for class_id, samples in benchmark.images.items()
    ]
    images = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in decoded])).permute(
        0, 3, 1, 2
    )
    masks = torch.from_numpy(np.stack([picture.mask for picture in decoded]))
    with torch.no_grad():
        pixels = torch.cat([images.float() / 127.5 - 1, render_masks(masks)])
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    assert latents.shape[1:] == (4, 16, 16)
    assert latents.std().item() == pytest.approx(1, rel=0.1)


def test_it_is_stored_in_half_precision_and_four_folds_fit_into_8_megabytes(made):
    file = made / "vae" / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    unet = start_unet(made, torch.float32)
    unet_bytes = 2 * sum(parameter.numel() for parameter in unet.parameters())
    assert file.stat().st_size + 4 * unet_bytes < 8e6
    assert json.loads((made / "vae" / "config.json").read_text())["norm_num_groups"] == 1


def test_training_from_nothing_starts_from_the_seed(made, trainer):
    one, other = (start_unet(made, torch.float32, seed=42).state_dict() for _ in range(2))
    assert differing(one, other) == []
    assert "conv_in.weight" in differing(one, start_unet(made, torch.float32, seed=43).state_dict())
    assert torch.equal(one["conv_in_ref.weight"], torch.cat([one["conv_in.weight"]] * 2, dim=1) / 2)
    assert torch.equal(one["conv_in_ref.bias"], one["conv_in.bias"])
    assert differing(trainer(f"base={made}", "seed=42").unet.state_dict(), one) == []


def test_the_tiny_recipe_trains_from_it(run, made, few_shapes, train_shapes, tmp_path):
    out = tmp_path / "shapes_fold2"
    words = [
        f"config={TINY_CONFIG}",
        f"base={made}",
        f"data={train_shapes}",
        f"out={out}",
        "fold=2",
        "workers=0",
    ]
    reset_accelerate()
    outcome = run("train", *words, "steps=2", f"cache={tmp_path / 'cache'}")
    assert outcome.code == 0, outcome
    assert differing(weights(out), start_unet(made, torch.float32, seed=42).state_dict())
    outcome = run(
        "eval",
        f"weight={out}",
        f"data={few_shapes}",
        "episodes=2",
        "workers=0",
        f"out={tmp_path / 'eval'}",
    )
    assert outcome.code == 0 and "coco20i fold 2, 1-shot, 2 episodes: mIoU" in outcome.out


def test_a_base_without_trained_weights_is_told_from_a_weight_dir(made, trained):
    assert isinstance(load_pipeline(trained, made).unet, DiffewsUNet)
    with pytest.raises(diffews.InputError):
        load_pipeline(made, made)


def test_the_text_is_the_same_in_training_and_evaluation(made):
    text = load_text(made)
    assert torch.equal(text["train"], text["eval"]) and text["eval"].shape == (1, 2, 32)
    assert torch.equal(
        TrainingStep(start_unet(made, torch.float32), text["train"], Variant().build()).text,
        text["eval"],
    )


def test_training_pictures_are_read_with_their_masks(few_shapes):
    images, classes = read_training_set(few_shapes)
    assert (images.shape, classes.shape) == ((160, 3, 64, 64), (160, 64, 64))
    folder = few_shapes / "COCO2014" / "annotations" / "train2014"
    for index in (0, 77, 159):
        want = cv2.imread(str(folder / f"COCO_train2014_{index:012d}.png"), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(classes[index].numpy(), want)


def test_bad_input_is_refused(refused, made, few_shapes, tmp_path):
    assert "exists" in refused("make-tiny-base", f"data={few_shapes}", f"out={made}")
    assert "no pictures in COCO2014/train2014" in refused(
        "make-tiny-base", f"data={tmp_path}", f"out={tmp_path / 'base'}"
    )
    assert "out=" in refused("make-tiny-base", f"data={few_shapes}")
    assert "batch=2 must be at least 4" in refused(
        "make-tiny-base", f"out={tmp_path / 'base'}", "batch=2"
    )
    assert not (tmp_path / "base").exists()
