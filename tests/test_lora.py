"""Low-rank additions from the files of diffusers, peft and kohya."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffews import InputError

pytest.importorskip("peft")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def answer(picture, square_mask):
    def ask(pipe):
        bank = pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
        return pipe(picture(2, 32, 32), bank).scores[0]

    return ask


@pytest.fixture(scope="module")
def adapted(small_pipe):
    """A pipeline with an adapter of rank 2 and twice its scale, never changed."""
    from peft import LoraConfig

    pipe = small_pipe()
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    return pipe


def diffusers_file(adapted, folder):
    adapted.unet.save_lora_adapter(folder)


def file_of_scripts(adapted, folder):
    """As diffusers' training scripts write it, with the UNet's name before each layer's."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(adapted.unet)
    scaled = {k: 2 * v if "lora_B" in k else v for k, v in layers.items()}  # it holds no scale
    adapted.save_lora_weights(folder, unet_lora_layers=scaled)


def peft_folder(adapted, folder):
    """As peft's own models are saved: a file of settings beside the weights."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(adapted.unet)
    folder.mkdir()
    named = {f"base_model.model.{k}": v.contiguous() for k, v in layers.items()}
    save_file(named, folder / "adapter_model.safetensors")
    adapted.unet.peft_config["default"].save_pretrained(folder)


def kohya_file(adapted, folder):
    """Layers by underscores, down and up for A and B, the scale as alpha."""
    from peft import get_peft_model_state_dict

    named = {}
    for key, tensor in get_peft_model_state_dict(adapted.unet).items():
        layer, _, kind = key.removesuffix(".weight").rpartition(".")
        layer = "lora_unet_" + layer.replace(".", "_")
        named[f"{layer}.lora_{'down' if kind == 'lora_A' else 'up'}.weight"] = tensor.contiguous()
        named[f"{layer}.alpha"] = torch.tensor(4.0)
    folder.mkdir()
    save_file(named, folder / FILE)


WRITERS = [diffusers_file, file_of_scripts, peft_folder, kohya_file]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_an_adapter_of_every_kind_of_file_is_the_adapter(
    small_pipe, adapted, answer, tmp_path, write
):
    write(adapted, tmp_path / "lora")
    pipe = small_pipe()
    plain = answer(pipe)
    pipe.load_lora_weights(tmp_path / "lora", adapter_name="one")
    assert np.abs(answer(pipe) - answer(adapted)).max() < 1e-4
    assert np.abs(answer(pipe) - plain).max() > 1e-2

    pipe.set_adapters("one", 0.0)
    assert np.abs(answer(pipe) - plain).max() < 1e-4
    pipe.unload_lora_weights()
    assert np.array_equal(answer(pipe), plain)


def test_tensors_by_name_and_fusing(small_pipe, adapted, answer, tmp_path):
    diffusers_file(adapted, tmp_path)
    pipe = small_pipe()
    pipe.load_lora_weights(load_file(tmp_path / FILE), adapter_name="one")
    pipe.set_adapters("one", 2.0)  # the tensors alone hold no scale
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert np.abs(answer(pipe) - answer(adapted)).max() < 1e-4


def test_what_came_whole_goes_with_the_adapter(small_pipe, adapted, answer, tmp_path):
    diffusers_file(adapted, tmp_path)
    stem = torch.randn_like(adapted.unet.conv_in_ref.weight)
    state = {**load_file(tmp_path / FILE), "unet.conv_in_ref.weight": stem}
    pipe = small_pipe()
    plain = answer(pipe)

    pipe.load_lora_weights(state)
    assert torch.equal(pipe.unet.conv_in_ref.weight, stem)
    with pytest.raises(InputError, match="call unload_lora_weights"):
        pipe.load_lora_weights(state, adapter_name="two")
    pipe.unload_lora_weights()
    assert np.array_equal(answer(pipe), plain)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"unet.nowhere.to_q.lora_A.weight": torch.ones(2, 16)}, "a layer that this UNet has not"),
        ({"text_encoder.layer.lora_A.weight": torch.ones(2, 16)}, "no additions to a UNet"),
        ({}, "no additions to a UNet"),
        (None, "no tensor of this UNet"),
        (np.nan, "not finite"),
        ((3, 5), "does not load"),
    ],
)
def test_what_is_no_adapter_of_this_unet_is_one_line(
    small_pipe, adapted, answer, tmp_path, state, words
):
    diffusers_file(adapted, tmp_path)
    good = load_file(tmp_path / FILE)
    if state is None:
        state = {**good, "unet.conv_in_ref.weight": torch.ones(1)}
    elif state is np.nan:
        state = {key: tensor * np.nan for key, tensor in good.items()}
    elif isinstance(state, tuple):
        state = {key: torch.ones(state) for key in good}
    pipe = small_pipe()
    plain = answer(pipe)
    with pytest.raises(InputError, match=words) as error:
        pipe.load_lora_weights(state)
    assert "\n" not in str(error.value)
    assert np.array_equal(answer(pipe), plain)


def test_files_that_are_none_are_one_line(small_pipe, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    for place, words in (
        (tmp_path / "missing.safetensors", "no such file"),
        (tmp_path / "damaged.safetensors", "no file of low-rank additions"),
        (tmp_path / "damaged.bin", "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            small_pipe().load_lora_weights(place)


def test_a_presence_head_is_not_asked_of_other_weights(small_pipe, adapted, tmp_path):
    from diffews import DiffewsPipeline
    from diffews.models.presence import HeadPresence, make_head

    diffusers_file(adapted, tmp_path)
    pipe = small_pipe()
    pipe.presence = HeadPresence(make_head(pipe.unet, "fast"), {})
    assert DiffewsPipeline.from_pipe(pipe).presence is pipe.presence
    assert DiffewsPipeline.from_pipe(pipe, unet=small_pipe().unet).presence.kind is None

    with pytest.warns(UserWarning, match="presence head is of the weights without the adapter"):
        pipe.load_lora_weights(tmp_path, adapter_name="one")
    assert pipe.presence.kind is None
