"""Weights and configs that cannot be are one line, which names the key or the tensor."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffews.cli.settings import CHECKOUT
from diffews.errors import InputError
from diffews.models.attention import SupportBank
from diffews.runtime.loading import load_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE, UNET = "base/vae", "shapes_fold0/unet/unet"


@pytest.fixture
def folder(tmp_path):
    """Copies of the shipped base and weights, which a test may damage."""
    for name in ("base", "shapes_fold0"):
        shutil.copytree(CHECKOUT / "weight" / "tiny" / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def refusal(folder):
    def call():
        with pytest.raises(InputError) as caught:
            load_pipeline(folder / "shapes_fold0")
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return call


def rewrite(file, change):
    content = json.loads(file.read_text())
    content.update(change)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        *((VAE, {"scaling_factor": value}) for value in (0, -1, float("nan"), None, "1", True)),
        (VAE, {"in_channels": 1}),
        (VAE, {"block_out_channels": [8] * 20_000}),
        (VAE, {"block_out_channels": [10**7] * 3}),
        (VAE, {"layers_per_block": 20_000}),
        (VAE, {"norm_num_groups": 0}),
        (VAE, {"down_block_types": ["Nope"] * 3}),
        (UNET, {"block_out_channels": "wide"}),
        (UNET, {"transformer_layers_per_block": 20_000}),
        (UNET, {"attention_head_dim": 0}),
        (UNET, {"_class_name": "TokenUNet"}),
    ],
)
def test_a_config_that_builds_no_part_is_refused(folder, refusal, part, change):
    (folder / UNET / WEIGHTS).write_bytes(b"")  # is not read before
    rewrite(folder / part / "config.json", change)
    assert f"{part}/config.json" in refusal()


@pytest.mark.parametrize("part", [VAE, UNET])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensor: tensor.fill_(float("nan")), "float32"),
        (lambda tensor: tensor.fill_(float("-inf")), "float32"),
        (lambda tensor: tensor.to(torch.int8), "I8"),
        (lambda tensor: tensor.to(torch.bool), "BOOL"),
        (lambda tensor: tensor.to(torch.complex64), "C64"),
    ],
)
def test_a_tensor_that_holds_no_numbers_is_named(folder, refusal, part, change, says):
    file = folder / part / WEIGHTS
    tensors = load_file(file)
    name = "conv_in.bias" if part == UNET else "decoder.conv_in.bias"
    save_file({**tensors, name: change(tensors[name])}, file)
    message = refusal()
    assert str(file.name) in message and name in message and says in message


@pytest.mark.parametrize("key", ["eval", "train"])
def test_a_text_condition_that_holds_no_numbers_is_named(folder, refusal, key):
    file = folder / "base" / "text.safetensors"
    text = load_file(file)
    save_file({**text, key: text[key] * float("inf")}, file)
    message = refusal()
    assert str(file.name) in message and key in message
    save_file({**text, key: text[key][0]}, file)
    assert str(file.name) in refusal()


@pytest.mark.parametrize("name", ["x.bin", "../x.safetensors", "/etc/passwd", "none.safetensors"])
def test_an_index_names_safetensors_files_beside_it(folder, refusal, name):
    (folder / UNET / WEIGHTS).unlink()
    index = folder / UNET / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
    message = refusal()
    assert str(index) in message and name in message


@pytest.mark.parametrize(
    "record",
    [{"variant": {"interaction": "cross_attention"}}, {"variant": 5}, {"base": 5}],
)
def test_a_record_that_does_not_fit_the_weights_is_refused(folder, refusal, record):
    (folder / UNET / WEIGHTS).write_bytes(b"")  # is not read before
    rewrite(folder / "shapes_fold0" / "diffews.json", record)
    message = refusal()
    assert "diffews.json" in message and next(iter(record)) in message


# ---- banks ----


def make_bank(value=0.0, shots=2):
    key, value, *others = (torch.full((1, 8, 4), v) for v in (0.0, value, 0.0, 0.0))
    return SupportBank(shots, {"a": (key, value), "b": tuple(others)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bank_that_holds_no_numbers_is_not_saved_and_not_read(tmp_path, value):
    file = tmp_path / "bank.safetensors"
    with pytest.raises(InputError, match=r"a\.value \(float32\)"):
        make_bank(value).save(file)
    assert not file.exists()
    make_bank().save(file)
    tensors = load_file(file)
    tensors["b.key"][0, 3] = value
    save_file(tensors, file, metadata={"shots": "2", "weights": ""})
    with pytest.raises(InputError, match=r"b\.key \(float32\)") as caught:
        SupportBank.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "shots"),
    [
        ("b.key", torch.zeros(1, 8, 4, dtype=torch.int64), 2),
        ("b.key", torch.zeros(1, 7, 4), 2),
        ("b.key", torch.zeros(8, 4), 2),
        ("b.seen", torch.zeros(1, 7, 1), 2),
        ("b.key", torch.zeros(1, 8, 4), 3),
        ("b.key", torch.zeros(1, 8, 4), 0),
    ],
)
def test_a_bank_of_other_shapes_is_refused(tmp_path, name, tensor, shots):
    file = tmp_path / "bank.safetensors"
    make_bank().save(file)
    metadata = {"shots": str(shots), "weights": ""}
    save_file({**load_file(file), name: tensor}, file, metadata=metadata)
    with pytest.raises(InputError) as caught:
        SupportBank.load(file)
    assert str(file) in str(caught.value)
