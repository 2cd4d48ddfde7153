"""SupportBank is a value: moved, cut, concatenated, sampled, saved, and the old one stays."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffews import InputError, SupportBank
from diffews.models.attention import BankRecorder

TIMESTEP = torch.tensor(1)


@pytest.fixture
def latents():
    """Support latents of four pictures, query latents of two, text."""
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(4, 8, 8, 8, generator=generator),
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(1, 5, 24, generator=generator),
    )


@pytest.fixture
def encode(unet, latents):
    """encode(slice, shots): the bank of some of the four supports."""

    @torch.no_grad()
    def encode(which=slice(None), shots=1):
        support = latents[0][which]
        return unet.encode_support(
            support, TIMESTEP, latents[2].expand(len(support), -1, -1), shots
        )

    return encode


@pytest.fixture
def answer(unet, latents):
    """answer(bank, queries): mask latents of the first queries."""

    @torch.no_grad()
    def answer(bank, queries=1):
        return unet.segment(
            latents[1][:queries], TIMESTEP, latents[2].expand(queries, -1, -1), bank
        )

    return answer


def assert_same(bank, other):
    assert bank.shots == other.shots and len(bank) == len(other) > 0
    others = {layer: (key, value) for layer, key, value in other}
    for layer, key, value in bank:
        assert torch.equal(key, others[layer][0]) and torch.equal(value, others[layer][1]), layer


def test_a_bank_holds_keys_and_values_of_every_self_attention_layer(unet, encode):
    bank = encode(shots=2)
    assert (bank.batch, bank.shots) == (2, 2)
    assert {layer for layer, _, _ in bank} == {
        name for name in unet.attn_processors if ".attn1." in name
    }
    sizes = 0
    for _, key, value in bank:
        assert key.shape == value.shape and key.shape[:1] == (2,) and key.shape[1] % 2 == 0
        sizes += key.numel() + value.numel()
    assert bank.nbytes == 4 * sizes  # float32
    tokens = [key.shape[1:] for _, key, _ in bank]
    assert tokens[0] == (2 * 8 * 8, 32)  # the first layer sees every latent pixel of both shots


def test_the_shots_of_one_set_stand_next_to_each_other(encode):
    sets, single = encode(shots=2), encode(shots=1)
    for (_, key, _), (_, one, _) in zip(sets, single, strict=True):
        torch.testing.assert_close(key[1], torch.cat([one[2], one[3]]))


def test_recording_a_layer_twice_keeps_the_first():
    recorder = BankRecorder(1)
    first, second = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    recorder.record("layer", first, first)
    recorder.record("layer", second, second)
    ((_, key, value),) = recorder.bank
    assert torch.equal(key, first) and torch.equal(value, first)


def test_an_empty_bank_has_no_sets():
    assert (len(SupportBank(1)), SupportBank(1).batch, SupportBank(1).nbytes) == (0, 0, 0)


def test_a_bank_in_another_type_is_a_new_bank(encode):
    bank = encode()
    half = bank.to(dtype=torch.bfloat16)
    assert half.nbytes * 2 == bank.nbytes
    assert {key.dtype for _, key, _ in half} == {torch.bfloat16}
    assert {key.dtype for _, key, _ in bank} == {torch.float32}
    assert {key.device.type for _, key, _ in bank.to("meta")} == {"meta"}


def test_a_bank_expanded_to_a_batch_answers_as_the_bank_of_one(encode, answer):
    one = encode(slice(0, 2), shots=2)
    many = one.expand(2)
    assert (many.batch, many.shots) == (2, 2)
    assert torch.equal(answer(many, 2), answer(one, 2))
    with pytest.raises(InputError, match="this one holds 2"):
        many.expand(3)


def test_a_slice_is_the_bank_of_some_sets(encode, answer):
    bank = encode(slice(0, 2))
    assert_same(bank[0:2], bank)
    for index in range(2):
        part = bank[index : index + 1]
        assert part.batch == 1
        torch.testing.assert_close(
            answer(part), answer(encode(slice(index, index + 1))), rtol=1e-4, atol=1e-5
        )


def test_concatenating_banks_adds_shots(encode, answer):
    first, second = encode(slice(0, 1)), encode(slice(1, 4), shots=3)
    joined = first.concatenate(second)
    assert (joined.shots, joined.batch, first.shots) == (4, 1, 1)
    assert joined.nbytes == first.nbytes + second.nbytes
    torch.testing.assert_close(
        answer(joined), answer(encode(slice(0, 4), shots=4)), rtol=1e-4, atol=1e-5
    )


def test_banks_that_do_not_fit_are_not_concatenated(encode):
    with pytest.raises(InputError, match="1 support sets .* against 2"):
        encode(slice(0, 1)).concatenate(encode(slice(0, 2)))
    with pytest.raises(InputError, match="against 0 in 0 layers"):
        encode(slice(0, 1)).concatenate(SupportBank(1))


def test_sampling_keeps_paired_keys_and_values_in_their_order(encode):
    bank = encode(shots=2)
    numbers = {
        layer: torch.arange(key.shape[1])[None, :, None].expand_as(key) for layer, key, _ in bank
    }
    marked = SupportBank(2, {layer: (token, 1000 + token) for layer, token in numbers.items()})
    sampled = marked.sample(1, torch.Generator().manual_seed(0))
    assert (sampled.shots, sampled.batch) == (1, 2)
    for (_, key, value), (_, whole, _) in zip(sampled, bank, strict=True):
        assert key.shape[1] * 2 == whole.shape[1]
        assert torch.equal(value, key + 1000)
        assert (key[0, :, 0].diff() > 0).all()
        assert torch.equal(key[0], key[1])  # the same tokens of every set


def test_sampling_follows_its_generator(encode):
    bank = encode(shots=2)
    draw = [bank.sample(1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert_same(draw[0], draw[1])
    assert any(
        not torch.equal(key, other)
        for (_, key, _), (_, other, _) in zip(draw[0], draw[2], strict=True)
    )


def test_sampling_all_shots_gives_the_same_bank(encode):
    bank = encode(shots=2)
    assert_same(bank.sample(2), bank)


@pytest.mark.parametrize("shots", [0, 3])
def test_sampling_fewer_than_one_or_more_than_all_shots_is_refused(encode, shots):
    with pytest.raises(InputError, match=f"cannot sample {shots}"):
        encode(shots=2).sample(shots)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_bank_is_the_same_bank(encode, tmp_path, dtype):
    bank = encode(shots=2).to(dtype=dtype)
    bank.save(tmp_path / "bank.safetensors")
    assert_same(SupportBank.load(tmp_path / "bank.safetensors"), bank)


def test_a_saved_bank_gives_the_same_answer(encode, answer, tmp_path):
    bank = encode(slice(0, 2))
    bank.save(tmp_path / "bank.safetensors")
    assert torch.equal(answer(SupportBank.load(tmp_path / "bank.safetensors"), 2), answer(bank, 2))


def test_an_expanded_and_a_cut_bank_can_be_saved(encode, tmp_path):
    for bank in (encode(slice(0, 1)).expand(3), encode(shots=2)[1:2]):
        bank.save(tmp_path / "bank.safetensors")
        assert_same(SupportBank.load(tmp_path / "bank.safetensors"), bank)


def test_a_file_that_is_no_bank_is_refused(encode, tmp_path):
    file = tmp_path / "bank.safetensors"
    with pytest.raises(InputError, match="bank.safetensors is not a support bank"):
        SupportBank.load(file)
    file.write_text("hello")
    with pytest.raises(InputError, match="is not a support bank"):
        SupportBank.load(file)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="is not a support bank"):
        SupportBank.load(file)


def test_a_truncated_or_halved_bank_is_refused(encode, tmp_path):
    file = tmp_path / "bank.safetensors"
    encode().save(file)
    tensors, content = load_file(file), file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(InputError, match="is not a support bank"):
        SupportBank.load(file)
    keys_only = {name: tensor for name, tensor in tensors.items() if name.endswith(".key")}
    save_file(keys_only, file, metadata={"shots": json.dumps(1)})
    with pytest.raises(InputError, match="is not a support bank"):
        SupportBank.load(file)
