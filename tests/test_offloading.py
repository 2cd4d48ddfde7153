"""Weights that wait elsewhere, or in other types: hooks of accelerate and diffusers, on a CPU."""

import accelerate
import numpy as np
import pytest
import torch

from diffews import DiffewsPipeline, InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def support(picture, square_mask):
    return picture(1, 32, 32), square_mask(32, 32)


@pytest.fixture
def answer(support, picture):
    def ask(pipe):
        return pipe(picture(2, 32, 32), pipe.encode_support(*support)).scores[0]

    return ask


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe):
    """What `enable_sequential_cpu_offload` does to each module; its own wants an accelerator."""
    for module in (pipe.unet, pipe.vae):
        accelerate.cpu_offload(module, CPU)
    assert pipe.unet.conv_in_ref.weight.is_meta  # they do wait elsewhere


def disk_offload(pipe, folder):
    accelerate.disk_offload(pipe.unet, folder, CPU)


def group_offload(pipe):
    pipe.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)


def leaf_offload(pipe):
    pipe.enable_group_offload(CPU, offload_type="leaf_level")


WAYS = [model_offload, sequential_offload, disk_offload, group_offload, leaf_offload]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_offloaded_weights_give_the_same_scores_and_banks(
    small_pipe, answer, support, tmp_path, way
):
    plain, pipe = small_pipe(), small_pipe()
    way(pipe, tmp_path / "disk") if way is disk_offload else way(pipe)
    assert np.array_equal(answer(pipe), answer(plain))
    assert np.array_equal(answer(pipe), answer(plain))  # the hooks have done their work once

    # a bank of one is a bank of the other
    plain.save_bank(plain.encode_support(*support), tmp_path / "plain.safetensors")
    pipe.save_bank(pipe.encode_support(*support), tmp_path / "moved.safetensors")
    plain.load_bank(tmp_path / "moved.safetensors")
    bank = pipe.load_bank(tmp_path / "plain.safetensors")
    for (_, key, value), (_, *want) in zip(bank, plain.encode_support(*support), strict=True):
        assert torch.equal(key, want[0]) and torch.equal(value, want[1])


def test_what_computes_outside_forward_is_refused_where_blocks_are_not_loaded(small_pipe, answer):
    pipe, plain = (small_pipe(variant_keys={"interaction": "qkv_fusion"}) for _ in range(2))
    group_offload(pipe)
    with pytest.raises(InputError, match="interaction=qkv_fusion .*leaf_level"):
        answer(pipe)

    pipe = small_pipe(variant_keys={"interaction": "qkv_fusion"})
    leaf_offload(pipe)
    assert np.array_equal(answer(pipe), answer(plain))


def test_float8_storage_computes_in_the_other_type(small_pipe, answer, support, tmp_path):
    plain, pipe = small_pipe(), small_pipe()
    for module in (pipe.unet, pipe.vae):
        module.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert pipe.unet.conv_in_ref.weight.dtype == torch.float8_e4m3fn

    # as rounding the stored weights beforehand
    for module in (plain.unet, plain.vae):
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and "norm" not in name:
                for parameter in layer.parameters(recurse=False):
                    parameter.data = parameter.to(torch.float8_e4m3fn).float()
    assert np.array_equal(answer(pipe), answer(plain))
    pipe.save_bank(pipe.encode_support(*support), tmp_path / "bank.safetensors")
    assert next(iter(pipe.load_bank(tmp_path / "bank.safetensors")))[1].dtype == torch.float32


def test_a_device_map_of_one_device_is_where_it_loads(small_pipe, answer, tmp_path):
    small_pipe().save_pretrained(tmp_path)
    pipe = DiffewsPipeline.from_pretrained(tmp_path, device_map="cpu")
    assert pipe.device == CPU and np.array_equal(answer(pipe), answer(small_pipe()))


def test_offloading_to_where_the_weights_are_is_one_line(small_pipe):
    with pytest.raises(InputError, match="device=cpu is no other"):
        small_pipe().enable_sequential_cpu_offload(device="cpu")
