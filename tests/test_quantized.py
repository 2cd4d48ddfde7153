"""Weights in 8 bits, by the packages that do it; without them these tests are left out."""

import numpy as np
import pytest
import torch

from diffews import InputError


@pytest.fixture
def answer(picture, square_mask):
    def ask(pipe):
        bank = pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
        return pipe(picture(2, 32, 32), bank).scores[0]

    return ask


def by_torchao(unet):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(unet, quantization.Int8WeightOnlyConfig())


def by_quanto(unet, exclude=("conv_in",)):
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(unet, weights=quanto.qint8, exclude=list(exclude))
    quanto.freeze(unet)


@pytest.mark.parametrize("quantize", [by_torchao, by_quanto], ids=lambda way: way.__name__)
def test_int8_weights_give_nearly_the_same_scores_and_banks_of_their_own(
    small_pipe, answer, picture, square_mask, tmp_path, quantize
):
    pipe, plain = small_pipe(), small_pipe()
    quantize(pipe.unet)
    difference = np.abs(answer(pipe) - answer(plain))
    assert 0 < difference.mean() < 0.02

    bank = pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
    pipe.save_bank(bank, tmp_path / "bank.safetensors")
    for (_, *one), (_, *other) in zip(
        bank, pipe.load_bank(tmp_path / "bank.safetensors"), strict=True
    ):
        assert all(map(torch.equal, one, other))
    with pytest.raises(InputError, match="other weights"):
        plain.load_bank(tmp_path / "bank.safetensors")


def test_a_first_layer_that_was_replaced_is_one_line(small_pipe, answer):
    pipe = small_pipe()
    stem = pipe.unet.conv_in
    pipe.unet.conv_in = torch.nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1)
    with pytest.raises(InputError, match=r"conv_in became a Conv2d.*exclude=\['conv_in'\]"):
        answer(pipe)
