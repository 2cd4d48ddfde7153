"""Nothing stale: whatever changes after a call, a pipeline gives what a fresh one gives."""

import numpy as np
import pytest
import torch

from diffews import InputError

# what may happen to a pipeline's weights and text, by the name of what does it; each is done
# twice, to a pipeline that has answered and to one that has not


def lora_adapter(pipe):
    """peft's adapter of the layers that make keys and values, as diffusers loads it from a file."""
    torch.manual_seed(1)
    state = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith((".to_k", ".to_v")):
            state[f"{name}.lora_A.weight"] = torch.randn(2, layer.in_features)
            state[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 2)
    pipe.unet.load_lora_adapter(state, prefix=None, adapter_name="one")


def adapter_weight(pipe):
    lora_adapter(pipe)
    pipe.unet.set_adapters("one", weights=0.3)


def adapter_off(pipe):
    lora_adapter(pipe)
    pipe.unet.disable_lora()


def adapter_fused(pipe):
    """It sums into `weight.data`, of which autograd's counters know nothing."""
    lora_adapter(pipe)
    pipe.unet.fuse_lora(0.5)
    pipe.unet.unload_lora()


def state_dict(pipe):
    pipe.unet.load_state_dict({name: 1.1 * t for name, t in pipe.unet.state_dict().items()})


def one_value(pipe):
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    layer.weight.data[0, 0] += 100


def other_unet(small_pipe):
    def change(pipe):
        pipe.unet = small_pipe(seed=1).unet

    return change


def other_text(pipe):
    pipe.text = {name: tensor + 1 for name, tensor in pipe.text.items()}


def text_in_place(pipe):
    pipe.text["eval"].mul_(2)


def half_precision(pipe):
    pipe.to(torch.bfloat16)


CHANGES = [
    lora_adapter,
    adapter_weight,
    adapter_off,
    adapter_fused,
    state_dict,
    one_value,
    other_text,
    text_in_place,
    half_precision,
]


@pytest.fixture
def answer(picture, square_mask):
    def ask(pipe):
        return pipe(
            picture(2, 32, 32), pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
        )

    return ask


@pytest.fixture(params=[*CHANGES, other_unet], ids=lambda change: change.__name__)
def change(request, small_pipe):
    return request.param(small_pipe) if request.param is other_unet else request.param


def test_a_change_after_a_call_gives_what_a_fresh_pipeline_gives(
    small_pipe, change, answer, tmp_path, picture, square_mask
):
    used, fresh = small_pipe(), small_pipe()
    before, hash_before = answer(used), used.weights_sha256
    file = tmp_path / "bank.safetensors"
    used.save_bank(used.encode_support(picture(1, 32, 32), square_mask(32, 32)), file)

    change(used)
    change(fresh)

    # the same answer to the last bit, and another one than before unless the change undid itself
    after, want = answer(used), answer(fresh)
    assert np.array_equal(after.scores[0], want.scores[0])
    assert np.array_equal(after.scores[0], before.scores[0]) == (change is adapter_off)

    # a bank of the weights before is no bank of those after
    assert used.weights_sha256 == fresh.weights_sha256 != hash_before
    with pytest.raises(InputError, match="other weights"):
        used.load_bank(file)


def test_an_adapter_that_is_taken_away_leaves_the_weights_as_they_were(small_pipe, answer):
    pipe = small_pipe()
    before, hash_before = answer(pipe), pipe.weights_sha256
    lora_adapter(pipe)
    assert not np.array_equal(answer(pipe).scores[0], before.scores[0])

    pipe.unet.delete_adapters("one")
    pipe.unet.unload_lora()
    assert np.array_equal(answer(pipe).scores[0], before.scores[0])
    assert pipe.weights_sha256 == hash_before


def test_the_hash_is_computed_again_only_after_a_change(small_pipe, monkeypatch):
    from diffews.models import hashing

    pipe, computed = small_pipe(), []
    compute = hashing._hash
    monkeypatch.setattr(hashing, "_hash", lambda *given: computed.append(1) or compute(*given))

    assert pipe.weights_sha256 == pipe.weights_sha256 and len(computed) == 1
    one_value(pipe)
    assert pipe.weights_sha256 == pipe.weights_sha256 and len(computed) == 2
