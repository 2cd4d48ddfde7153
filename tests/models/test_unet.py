"""The two passes of DiffewsUNet, against the reference's numbers and diffusers' own UNet."""

import copy
import json

import pytest
import torch
import torch._dynamo
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn.functional import mse_loss

from diffews import DiffewsUNet, InputError
from diffews.models.attention import SupportBank
from diffews.models.weights import load_unet

TIMESTEP = torch.tensor(1)


@pytest.fixture(scope="module")
def stock(tiny_unet_config):
    torch.manual_seed(0)
    return UNet2DConditionModel(**tiny_unet_config).eval()


@pytest.fixture
def golden_unet(weight):
    return load_unet(weight / "unet" / "unet", torch.float32)


def random_batch(queries=2, shots=3, side=16):
    """Support latents [B*S, 8, h, w], query latents [B, 4, h, w], text [1, tokens, C]."""
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(queries * shots, 8, side, side, generator=generator),
        torch.randn(queries, 4, side, side, generator=generator),
        torch.randn(1, 5, 24, generator=generator),
    )


def both_passes(unet, support, query, text, shots):
    bank = unet.encode_support(support, TIMESTEP, text.expand(len(support), -1, -1), shots)
    return unet.segment(query, TIMESTEP, text.expand(len(query), -1, -1), bank)


# ---- the reference's numbers ----


@torch.no_grad()
@pytest.mark.parametrize(("case", "shots"), [("b1n1", 1), ("b1n3", 3), ("b2n2", 2)])
def test_both_passes_give_what_the_reference_gave(golden_unet, expected, case, shots):
    golden = {name: torch.from_numpy(array) for name, array in expected("unet").npz.items()}
    support, query, text = (golden[f"{case}.{part}"] for part in ("support", "query", "text"))

    support_text = text.expand(len(support), -1, -1)
    support_output = golden_unet(golden_unet.conv_in_ref(support), TIMESTEP, support_text).sample
    torch.testing.assert_close(
        support_output, golden[f"{case}.support_out"], rtol=0, atol=2e-3
    )  # values up to 8

    query_latents = both_passes(golden_unet, support, query, text, shots)
    torch.testing.assert_close(query_latents, -golden[f"{case}.query_out"], rtol=0, atol=2e-3)


def test_loss_and_every_gradient_are_those_of_the_reference(golden_unet, expected):
    golden = expected("unet")
    support, query, mask, text = (
        torch.from_numpy(golden.npz[f"train.{k}"]) for k in ("support", "query", "mask", "text")
    )
    golden_unet.requires_grad_(True).train()
    loss = mse_loss(both_passes(golden_unet, support, query, text, shots=2), mask)
    loss.backward()

    assert loss.item() == pytest.approx(golden.json["loss"], rel=1e-4)
    norms = {
        name: parameter.grad.norm().item() for name, parameter in golden_unet.named_parameters()
    }
    assert norms == pytest.approx(golden.json["grad_norm"], rel=2e-3)


# ---- the stock UNet as an oracle ----


def with_support_stem(stock):
    unet = DiffewsUNet.from_config(stock.config).eval()
    missing, unexpected = unet.load_state_dict(stock.state_dict(), strict=False)
    assert unexpected == [] and sorted(missing) == ["conv_in_ref.bias", "conv_in_ref.weight"]
    unet.start_support_stem()
    return unet


@torch.no_grad()
def test_without_a_bank_it_is_the_stock_unet_bit_for_bit(stock):
    _, query, text = random_batch()
    text = text.expand(2, -1, -1)
    unet = with_support_stem(stock)
    assert torch.equal(unet(query, TIMESTEP, text).sample, stock(query, TIMESTEP, text).sample)


class TokensBeforeAttention:
    """The paper's words: the support's tokens stand beside the query's before stock attention."""

    def __init__(self, layer):
        self.layer, self.stock = layer, AttnProcessor2_0()

    def __call__(
        self,
        attn,
        hidden,
        encoder_hidden_states=None,
        attention_mask=None,
        temb=None,
        keep=None,
        read=None,
    ):
        if encoder_hidden_states is None and keep is not None:
            keep[self.layer] = hidden
        if encoder_hidden_states is None and read is not None:
            support = read[self.layer].reshape(hidden.shape[0], -1, hidden.shape[-1])
            encoder_hidden_states = torch.cat([hidden, support], 1)
        return self.stock(attn, hidden, encoder_hidden_states, attention_mask, temb)


@torch.no_grad()
def test_the_bank_equals_concatenating_tokens_before_the_stock_attention(unet):
    support, query, text = random_batch()
    got = both_passes(unet, support, query, text, 3)

    unet.set_attn_processor({name: TokensBeforeAttention(name) for name in unet.attn_processors})
    tokens = {}
    unet(
        unet.conv_in_ref(support),
        TIMESTEP,
        text.expand(6, -1, -1),
        cross_attention_kwargs={"keep": tokens},
    )
    want = -unet(
        query, TIMESTEP, text.expand(2, -1, -1), cross_attention_kwargs={"read": tokens}
    ).sample
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_a_new_support_stem_is_the_mean_of_two_query_stems(stock):
    unet = with_support_stem(stock)
    latents, other = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        unet.conv_in_ref(torch.cat([latents, latents], 1)), unet.conv_in(latents)
    )
    torch.testing.assert_close(
        unet.conv_in_ref(torch.cat([latents, other], 1)),
        (unet.conv_in(latents) + unet.conv_in(other)) / 2,
    )


# ---- what a support set is ----


@torch.no_grad()
def test_the_order_of_shots_does_not_matter(unet):
    support, query, text = random_batch(queries=1)
    want = both_passes(unet, support, query, text, 3)
    torch.testing.assert_close(
        both_passes(unet, support.flip(0), query, text, 3), want, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_queries_of_a_batch_do_not_see_each_others_support(unet):
    support, query, text = random_batch(queries=2)
    both = both_passes(unet, support, query, text, 3)
    alone = [
        both_passes(unet, support[3 * i : 3 * i + 3], query[i : i + 1], text, 3) for i in range(2)
    ]
    torch.testing.assert_close(torch.cat(alone), both, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_support_changes_the_answer(unet):
    support, query, text = random_batch()
    changed = both_passes(unet, support + 1, query, text, 3)
    assert (changed - both_passes(unet, support, query, text, 3)).abs().max() > 1e-2


@torch.no_grad()
def test_one_bank_serves_many_queries(unet):
    support, query, text = random_batch(queries=1, shots=2)
    bank = unet.encode_support(support, TIMESTEP, text.expand(2, -1, -1), 2)
    for latents in (query, query + 1, query):
        want = both_passes(unet, support, latents, text, 2)
        assert torch.equal(unet.segment(latents, TIMESTEP, text, bank), want)
    together = unet.segment(torch.cat([query, query + 1]), TIMESTEP, text.expand(2, -1, -1), bank)
    torch.testing.assert_close(
        together[1:], both_passes(unet, support, query + 1, text, 2), rtol=1e-4, atol=1e-5
    )


# ---- gradients ----


def gradients(unet):
    support, query, text = random_batch()
    unet.zero_grad()
    both_passes(unet, support, query, text, 3).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


def test_gradients_reach_every_parameter(unet):
    for name, gradient in gradients(unet.train()).items():
        assert gradient.abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient(unet):
    want = gradients(unet.train())
    unet.enable_gradient_checkpointing()
    for name, gradient in gradients(unet).items():
        torch.testing.assert_close(gradient, want[name], msg=name)


# ---- loud errors ----


def test_a_dropped_processor_is_loud(unet):
    support, query, text = random_batch()
    unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(RuntimeError, match="0 of 10 self-attention layers"):
        both_passes(unet, support, query, text, 3)


@pytest.mark.parametrize("shots", [0, 4])
def test_shots_that_do_not_divide_the_supports_are_refused(unet, shots):
    with pytest.raises(InputError, match="6 support latents"):
        both_passes(unet, *random_batch(), shots)


def test_a_bank_of_another_batch_is_refused(unet):
    support, query, text = random_batch(queries=2)
    bank = unet.encode_support(support, TIMESTEP, text.expand(6, -1, -1), 3)
    with pytest.raises(InputError, match="3 queries cannot read a bank of 2"):
        unet.segment(query[[0, 1, 1]], TIMESTEP, text.expand(3, -1, -1), bank)
    with pytest.raises(InputError, match="bank of 0"):
        unet.segment(query, TIMESTEP, text.expand(2, -1, -1), SupportBank(1))


@torch.no_grad()
def test_two_passes_warn_of_nothing(unet, caplog):
    both_passes(unet, *random_batch(), 3)
    assert not caplog.messages


# ---- save, load, compile, copy ----


@torch.no_grad()
@pytest.mark.parametrize(
    "class_name", ["DiffewsUNet", "MyUNet2DConditionModel", "UNet2DConditionModel"]
)
@pytest.mark.parametrize("safetensors", [True, False])
def test_a_saved_unet_gives_the_same_answer(unet, tmp_path, class_name, safetensors, caplog):
    unet.save_pretrained(tmp_path, safe_serialization=safetensors)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["_class_name"] == "DiffewsUNet"
    extra = {"in_channels_ref": 8} if class_name.startswith("My") else {}
    file.write_text(json.dumps({**config, **extra, "_class_name": class_name}))

    caplog.clear()
    again = DiffewsUNet.from_pretrained(tmp_path, use_safetensors=safetensors)
    assert not caplog.messages
    batch = random_batch()
    assert torch.equal(both_passes(again, *batch, 3), both_passes(unet, *batch, 3))
    assert list(again.config.block_out_channels) == [32, 64, 64, 64]


def test_a_config_that_contradicts_the_support_stem_is_refused(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels_ref": 5}))
    with pytest.raises(InputError, match="in_channels_ref is 5"):
        DiffewsUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("width", [4, 8])
def test_a_first_width_that_is_that_of_latents_is_refused(tiny_unet_config, width):
    widths = (width, *tiny_unet_config["block_out_channels"][1:])
    config = {**tiny_unet_config, "block_out_channels": widths, "norm_num_groups": 4}
    with pytest.raises(InputError, match=f"block_out_channels starts with {width}"):
        DiffewsUNet(**config)


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_without_a_graph_break(tiny_unet_config):
    blocks = {
        "block_out_channels": (16, 32),  # two of the four levels: compiling takes seconds a level
        "attention_head_dim": [2, 4],
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = DiffewsUNet(**{**tiny_unet_config, **blocks}).eval()
    batch = random_batch(queries=1, shots=2)
    want = both_passes(unet, *batch, 2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    unet.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(both_passes(unet, *batch, 2), want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one a pass
    torch._dynamo.reset()


@torch.no_grad()
def test_a_deep_copy_stands_alone(unet):
    batch = random_batch()
    want = both_passes(unet, *batch, 3)
    twin = copy.deepcopy(unet)
    unet.conv_in.weight.zero_()
    assert torch.equal(both_passes(twin, *batch, 3), want)


@pytest.mark.slow  # tracing takes half a minute
def test_each_pass_is_traced_as_one_graph_and_gives_the_same(unet):
    """What `compile=true` rests on; the graphs run uncompiled, which needs no C++ compiler."""
    supports, queries, text = (
        torch.randn(2, 8, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(1, 2, 24),
    )
    step = torch.tensor(1)
    with torch.no_grad():
        keys = unet.encode_text(text)
        want = unet.segment(queries, step, keys, unet.encode_support(supports, step, keys, 1))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        unet.compile(backend="eager")
        for _ in range(2):
            got = unet.segment(queries, step, keys, unet.encode_support(supports, step, keys, 1))
            assert torch.equal(got, want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
