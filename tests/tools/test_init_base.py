"""`diffews init-base`: a plain Stable Diffusion folder becomes a base, complete or not at all."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffews import DiffewsPipeline, load_pipeline
from diffews.models.weights import load_text, load_unet

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def stable_diffusion(own_base, weight):
    """A folder as Stable Diffusion comes: the golden base with a UNet that has no `conv_in_ref`."""
    unet = own_base / "unet"
    shutil.rmtree(unet)
    shutil.copytree(weight / "unet" / "unet", unet)
    save_file(
        {k: v for k, v in load_file(unet / FILE).items() if not k.startswith("conv_in_ref")},
        unet / FILE,
    )
    config = json.loads((unet / "config.json").read_text())
    del config["in_channels_ref"]
    (unet / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    return own_base


@pytest.fixture
def out(tmp_path):
    return tmp_path / "bases" / "new"


def test_the_new_base_has_the_support_stem_and_all_else_as_it_was(
    run, stable_diffusion, out, caplog
):
    outcome = run("init-base", f"sd={stable_diffusion}", f"out={out}")
    assert outcome.code == 0 and f"wrote {out}" in outcome.out
    assert not caplog.messages  # nothing about newly initialized weights

    old, new = (
        load_file(stable_diffusion / "unet" / FILE),
        load_unet(out / "unet", torch.float32).state_dict(),
    )
    assert set(new) == {*old, "conv_in_ref.weight", "conv_in_ref.bias"}
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    half = old["conv_in.weight"] / 2
    assert torch.equal(new["conv_in_ref.weight"], torch.cat([half, half], 1))
    assert torch.equal(new["conv_in_ref.bias"], old["conv_in.bias"])

    old_vae, new_vae = (load_file(folder / "vae" / FILE) for folder in (stable_diffusion, out))
    assert old_vae.keys() == new_vae.keys() and all(
        torch.equal(new_vae[k], v) for k, v in old_vae.items()
    )
    text = load_text(stable_diffusion)
    assert all(torch.equal(tensor, text[key]) for key, tensor in load_text(out).items())
    for part in ("text_encoder", "tokenizer"):
        for file in (stable_diffusion / part).iterdir():
            assert (out / part / file.name).read_bytes() == file.read_bytes()


def test_the_new_base_serves_weights_as_the_old_one_does(
    run, stable_diffusion, weight, base, out, picture, square_mask
):
    assert run("init-base", f"sd={stable_diffusion}", f"out={out}").code == 0
    arguments = {"support_images": picture(1), "support_masks": square_mask(), "image_size": 64}
    want, got = (load_pipeline(weight, folder)(picture(2), **arguments) for folder in (base, out))
    assert np.array_equal(got.scores[0], want.scores[0])
    assert DiffewsPipeline.from_pretrained(out)(picture(2), **arguments).masks[0].shape == (64, 64)


def test_stable_diffusion_1_has_other_attention_and_works_too(run, stable_diffusion, out):
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        "use_linear_projection": False,
    }
    shutil.rmtree(stable_diffusion / "unet")
    UNet2DConditionModel(**config).save_pretrained(stable_diffusion / "unet")
    assert run("init-base", f"sd={stable_diffusion}", f"out={out}").code == 0
    unet = load_unet(out / "unet", torch.float32)
    assert unet.config.use_linear_projection is False and unet.conv_in_ref.in_channels == 8


def test_a_base_can_be_stored_in_half_precision(run, stable_diffusion, out):
    assert run("init-base", f"sd={stable_diffusion}", f"out={out}", "dtype=fp16").code == 0
    for part in ("unet", "vae"):
        assert {tensor.dtype for tensor in load_file(out / part / FILE).values()} == {torch.float16}
    assert load_pipeline(out, out).unet.dtype == torch.float32


@pytest.mark.parametrize("marked", [True, False])
def test_a_support_stem_that_is_there_is_kept(run, stable_diffusion, weight, out, marked):
    unet = stable_diffusion / "unet"
    shutil.copy(weight / "unet" / "unet" / FILE, unet / FILE)
    config = json.loads((unet / "config.json").read_text())
    marks = (
        {"_class_name": "MyUNet2DConditionModel", "in_channels_ref": 8}
        if marked
        else {"_class_name": "DiffewsUNet"}
    )
    (unet / "config.json").write_text(json.dumps({**config, **marks}))
    assert run("init-base", f"sd={stable_diffusion}", f"out={out}").code == 0
    old, new = load_file(unet / FILE), load_file(out / "unet" / FILE)
    assert torch.equal(new["conv_in_ref.weight"], old["conv_in_ref.weight"])


def test_pickled_parts_are_read_only_when_that_is_allowed(run, refused, stable_diffusion, out):
    file = stable_diffusion / "vae" / FILE
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert "allow_bin=true" in refused("init-base", f"sd={stable_diffusion}", f"out={out}")
    assert not out.parent.exists() or not any(out.parent.iterdir())
    assert run("init-base", f"sd={stable_diffusion}", f"out={out}", "allow_bin=true").code == 0
    assert (out / "vae" / FILE).is_file()


# ---- bad input ----


@pytest.fixture
def refused_base(refused, stable_diffusion, out):
    """refused_base(*words): the refusal of a bad source, of which nothing may be left."""

    def call(*words):
        message = refused("init-base", f"sd={stable_diffusion}", f"out={out}", *words)
        assert not out.parent.exists() or not any(out.parent.iterdir())
        return message

    return call


def test_what_must_be_given_is_asked_for(refused, stable_diffusion, out):
    assert "sd= is missing" in refused("init-base", f"out={out}")
    assert "out= is missing" in refused("init-base", f"sd={stable_diffusion}")


def test_a_missing_folder_is_refused(refused_base, tmp_path):
    assert f"sd={tmp_path / 'none'}: no such folder" in refused_base(f"sd={tmp_path / 'none'}")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_folder_without_a_part_is_refused(refused_base, stable_diffusion, part):
    shutil.rmtree(stable_diffusion / part)
    assert part in refused_base()


@pytest.mark.parametrize("file", [f"unet/{FILE}", f"vae/{FILE}", "text_encoder/model.safetensors"])
def test_a_truncated_file_is_refused(refused_base, stable_diffusion, file):
    path = stable_diffusion / file
    path.write_bytes(path.read_bytes()[:-50])
    assert str(path.parent) in refused_base()


def test_a_unet_without_weights_is_refused_and_not_made_up(refused_base, stable_diffusion):
    (stable_diffusion / "unet" / FILE).unlink()
    assert "unet" in refused_base()


def test_an_existing_folder_is_left_alone(refused, stable_diffusion, out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("chapter 1")
    assert f"out={out} exists" in refused("init-base", f"sd={stable_diffusion}", f"out={out}")
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_nothing(refused_base, largest_file):
    with largest_file(100_000):  # the UNet has 2 MB
        assert "free some space" in refused_base()


@pytest.mark.parametrize("place", ["tokenizer/vocab.json", "tokenizer/more.txt", "text_encoder/x"])
def test_a_link_out_of_the_folder_is_refused(refused, stable_diffusion, out, tmp_path, place):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    link = stable_diffusion / place
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    message = refused("init-base", f"sd={stable_diffusion}", f"out={out}")
    assert str(link) in message and not out.exists()


def test_links_into_the_hubs_cache_are_followed(run, stable_diffusion, out, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    shutil.copytree(stable_diffusion, snapshot)
    file = snapshot / "tokenizer" / "vocab.json"
    blob = file.rename(snapshot.parents[1] / "blobs" / "abc")
    file.symlink_to(blob)
    assert run("init-base", f"sd={snapshot}", f"out={out}").code == 0
    assert not (out / "tokenizer" / "vocab.json").is_symlink()
