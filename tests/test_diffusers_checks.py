"""What diffusers asks of models and pipelines, asked of ours; docs/diffusers.md has the table."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel

import diffews
from diffews import DiffewsPipeline, DiffewsUNet
from diffews.models.attention import BankAttnProcessor

TIMESTEP = torch.tensor(1)


@pytest.fixture(scope="module")
def shared(small_pipe):
    """A pipeline that no test changes."""
    return small_pipe()


@pytest.fixture(scope="module")
def inputs():
    """Latents of queries, of supports with their masks, and a text."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"sample": (2, 4, 16, 16), "support": (2, 8, 16, 16), "text": (2, 3, 24)}
    return {name: torch.randn(size, generator=draw) for name, size in sizes.items()}


@pytest.fixture
def ask(picture, square_mask):
    def call(pipe, queries=1, **keys):
        bank = pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
        return pipe([picture(2 + i, 32, 32) for i in range(queries)], bank, **keys)

    return call


def both_passes(unet, inputs):
    """The mask latents of both passes, with everything that has a gradient in between."""
    bank = unet.encode_support(inputs["support"], TIMESTEP, inputs["text"], shots=1)
    return unet.segment(inputs["sample"], TIMESTEP, inputs["text"], bank)


# ---- the model ----


def plain_twin(unet):
    """diffusers' own UNet with the same weights."""
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    twin = UNet2DConditionModel(**config).eval()
    state = {k: v for k, v in unet.state_dict().items() if not k.startswith("conv_in_ref")}
    twin.load_state_dict(state)
    return twin


MASKS = {
    "none": {},
    "text": {"encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])},
    "text of floats": {"encoder_attention_mask": torch.tensor([[1.0, 1, 0], [1, 0, 1]])},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MASKS)
def test_the_plain_forward_is_that_of_diffusers(shared, inputs, name):
    keys = MASKS[name]
    given = inputs["sample"], TIMESTEP, inputs["text"]
    got, want = (unet(*given, **keys).sample for unet in (shared.unet, plain_twin(shared.unet)))
    torch.testing.assert_close(got, want)
    if name.startswith("text"):  # and it is no plain forward without them
        assert not torch.allclose(got, shared.unet(*given).sample, atol=1e-4)


@torch.no_grad()
def test_a_dict_and_a_tuple_hold_the_same_and_twice_is_once(shared, inputs):
    given = inputs["sample"], TIMESTEP, inputs["text"]
    (one,) = shared.unet(*given, return_dict=False)
    assert torch.equal(one, shared.unet(*given).sample)
    assert torch.equal(both_passes(shared.unet, inputs), both_passes(shared.unet, inputs))


@torch.no_grad()
@pytest.mark.parametrize("keys", [{}, {"variant": "fp16"}, {"max_shard_size": "300KB"}], ids=str)
def test_a_saved_model_is_the_model(shared, inputs, tmp_path, keys):
    shared.unet.save_pretrained(tmp_path, **keys)
    named = {k: v for k, v in keys.items() if k == "variant"}
    again = DiffewsUNet.from_pretrained(tmp_path, **named)
    one, other = (json.loads(unet.to_json_string()) for unet in (again, shared.unet))
    assert {**one, "_name_or_path": None} == {**other, "_name_or_path": None}
    assert torch.equal(both_passes(again, inputs), both_passes(shared.unet, inputs))
    half = DiffewsUNet.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, **named)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_processors_come_back(small_pipe, inputs):
    unet = small_pipe().unet
    want = both_passes(unet, inputs)
    for change in (
        lambda: unet.set_attention_slice("max"),
        lambda: unet.fuse_qkv_projections(),
        lambda: unet.unfuse_qkv_projections(),
        lambda: unet.set_attn_processor(dict(unet.attn_processors)),
        lambda: unet.set_attention_backend("native"),
    ):
        change()
        assert torch.equal(both_passes(unet, inputs), want)

    plain = plain_twin(unet).attn_processors
    unet.set_attn_processor(plain)
    with pytest.raises(RuntimeError, match="set_default_attn_processor"):
        both_passes(unet, inputs)
    unet.set_default_attn_processor()
    assert {type(p) for p in unet.attn_processors.values()} == {BankAttnProcessor}
    assert torch.equal(both_passes(unet, inputs), want)


def test_it_trains_and_checkpointing_changes_no_gradient(small_pipe, inputs):
    grads = []
    for checkpointing in (False, True):
        unet = small_pipe().unet.train().requires_grad_(True)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing
        both_passes(unet, inputs).square().mean().backward()
        grads.append({name: p.grad for name, p in unet.named_parameters()})

    # all but what only the rest of the support pass would need
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_an_average_of_weights_follows_them_and_a_copy_is_independent(small_pipe, inputs):
    unet = small_pipe().unet.requires_grad_(True)
    average = EMAModel(unet.parameters(), decay=0.5)
    twin = copy.deepcopy(unet)
    want = both_passes(twin, inputs)
    with torch.no_grad():
        unet.conv_in_ref.weight.mul_(3)
    average.step(unet.parameters())
    assert torch.equal(both_passes(twin, inputs), want)  # its first layer leads to its own
    assert not torch.equal(both_passes(unet, inputs), want)


# ---- the pipeline ----


def test_several_queries_are_each_alone_and_a_batch_is_all(shared, ask):
    several, together = ask(shared, 3), ask(shared, 3, batch=3)
    assert len(several.masks) == len(together.masks) == 3
    assert np.array_equal(several.scores[0], ask(shared).scores[0])
    for one, other in zip(several.scores, together.scores, strict=True):
        assert np.abs(one - other).max() <= 2 / 255


def test_it_moves_changes_type_and_names_its_parts(small_pipe, ask):
    pipe = small_pipe()
    assert isinstance(pipe, DiffusionPipeline) and pipe.device == torch.device("cpu")
    assert {"unet", "vae", "encoder", "decoder", "text"} <= pipe.components.keys()
    want = ask(pipe).scores[0]
    assert pipe.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert np.abs(ask(pipe).scores[0] - want).mean() < 0.1
    assert np.isfinite(ask(pipe.to(torch.float32)).scores[0]).all()


def test_slices_and_tiles_of_the_vae_change_nothing_here(small_pipe, ask):
    pipe = small_pipe()
    want = ask(pipe, 2, batch=2)
    pipe.vae.enable_slicing()
    pipe.enable_attention_slicing()
    got = ask(pipe, 2, batch=2)
    for one, other in zip(got.scores, want.scores, strict=True):
        assert np.abs(one - other).max() <= 2 / 255
    pipe.disable_attention_slicing()
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {BankAttnProcessor}


def test_parts_that_may_be_missing_may_be_missing(shared, ask, tmp_path):
    shared.save_pretrained(tmp_path)
    again = DiffewsPipeline.from_pretrained(tmp_path)
    assert again.encoder is None and again.decoder is None
    assert np.array_equal(ask(again).scores[0], ask(shared).scores[0])
    sharded = tmp_path / "sharded"
    shared.save_pretrained(sharded, max_shard_size="300KB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    for load in (DiffewsPipeline.from_pretrained, diffews.load_pipeline):
        assert np.array_equal(ask(load(sharded)).scores[0], ask(shared).scores[0])
