"""Presence: what a head compares, that it changes no mask, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffews import DiffewsPipeline, InputError, load_pipeline
from diffews.models.find import find_weights
from diffews.models.presence import (
    CosinePresence,
    HeadPresence,
    NoPresence,
    make_head,
    open_presence,
)
from diffews.models.signature import compare, outline, sign, statistics
from diffews.tools.shapes import SHAPES, _shape

# ---- what is compared ----


def shape(name, seed, x=32.0, y=32.0, radius=14.0):
    """One of shapes' masks, turned and stretched by its own seed."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(_shape(generator, name, x, y, radius))[None]


def test_an_outline_knows_a_shape_wherever_and_however_it_lies():
    described = {
        name: torch.cat(
            [outline(shape(name, seed, 22 + seed, 40 - seed, 10 + seed)) for seed in range(6)]
        )[:, :28]
        for name in SHAPES
    }
    for name, own in described.items():
        spread = (own - own.mean(0)).norm(dim=1).max()
        for other in set(SHAPES) - {name}:
            assert (own.mean(0) - described[other].mean(0)).norm() > 2 * spread, (name, other)


def test_an_outline_of_nothing_is_nothing_and_of_everything_is_finite():
    assert not outline(torch.zeros(2, 64, 64)).any()
    assert outline(torch.ones(1, 64, 64)).isfinite().all()
    assert outline(torch.eye(64)[None]).isfinite().all()  # a line has no width
    one = torch.zeros(1, 64, 64)
    one[0, 3, 4] = 1
    assert outline(one).isfinite().all()


def test_keys_and_values_are_pooled_under_the_mask_shot_by_shot():
    torch.manual_seed(0)
    key, value = torch.randn(2, 2, 3 * 16, 8)  # two sets of three shots, 4 x 4 tokens
    masks = torch.zeros(6, 8, 8)
    for row in range(6):
        masks[row, row : row + 2, :5] = 1
    found = sign([("layer", key, value)], masks, shots=3)

    for row in range(6):
        weights = [masks[row, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
                   for i in range(4) for j in range(4)]  # fmt: skip
        tokens = key[row // 3].reshape(3, 16, 8)[row % 3]
        want = sum(w * t for w, t in zip(weights, tokens, strict=True)) / sum(weights)
        assert torch.allclose(found["layer.key"][row // 3, row % 3], want, atol=1e-6)
    assert found["outline"].shape[:2] == (2, 3)


def test_a_comparison_is_one_cosine_a_head():
    one, other = ({f"a.{part}": torch.randn(1, 1, 8) for part in ("key", "value")} for _ in "ab")
    found = compare(one, other, {"a": 2})[0, 0]
    a, b = (x["a.value"][0, 0, 4:].numpy() for x in (one, other))
    assert len(found) == 4
    assert found[3] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_statistics_are_those_of_the_mean_picture():
    rgb = torch.rand(1, 3, 10, 10)
    mask = rgb.mean(1) > 0.5
    scores = rgb.mean(1).flatten().sort(descending=True).values
    want = [scores[0], scores[:2].mean(), scores[scores > 0.5].mean(), mask.float().mean()]
    assert torch.allclose(statistics(rgb, mask)[0], torch.stack(want))


# ---- in the pipeline ----


@pytest.fixture
def asked(pipe):
    """The golden pipeline asked by a presence: asked("full")."""

    def make(kind):
        own = DiffewsPipeline(pipe.unet, pipe.vae, pipe.text, image_size=64)
        if kind == "cosine":
            own.presence = CosinePresence()
        else:
            torch.manual_seed(0)
            head = make_head(pipe.unet, kind)
            head.start()
            own.presence = HeadPresence(head, {})
        return own

    return make


@pytest.fixture
def images(picture, square_mask):
    return (
        [picture(1), picture(2)],
        [square_mask(), square_mask()],
        [picture(3), picture(4, 50, 40)],
    )


@pytest.mark.parametrize("kind", ["full", "fast", "cosine"])
def test_presence_changes_no_mask_and_no_score(pipe, asked, images, kind):
    supports, masks, queries = images
    plain, own = pipe(queries, pipe.encode_support(supports, masks)), asked(kind)
    found = own(queries, own.encode_support(supports, masks))
    assert plain.presence is None and len(found.presence) == 2
    assert all(isinstance(share, float) and 0 <= share <= 1 for share in found.presence)
    for ours, theirs in zip(found.scores + found.masks, plain.scores + plain.masks, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["full", "fast"])
def test_presence_depends_neither_on_the_batch_nor_on_a_shot_that_comes_twice(asked, images, kind):
    supports, masks, queries = images
    own = asked(kind)
    bank = own.encode_support(supports[0], masks[0])
    alone = own(queries[0], bank).presence
    assert own([*queries, queries[0]], bank, batch=3).presence[::2] == pytest.approx(2 * alone)
    twice = own.encode_support([supports[0]] * 2, [masks[0]] * 2)
    assert twice.signature["outline"].shape[:2] == (1, 2)

    # the query pass reads the same tokens twice, which changes its answer a little
    assert own(queries[0], twice).presence == pytest.approx(alone, abs=0.02)


def test_a_fast_head_takes_no_more_passes_and_a_full_one_one(asked, images, monkeypatch):
    supports, masks, queries = images
    calls, original = [], type(asked("fast").unet).encode_support

    def counted(*words, **keys):
        calls.append(1)
        return original(*words, **keys)

    for kind, more in (("fast", 0), ("full", 1)):
        own = asked(kind)
        bank = own.encode_support(supports, masks)
        with monkeypatch.context() as patched:
            patched.setattr(type(own.unet), "encode_support", counted)
            calls.clear()
            own(queries, bank)
        assert len(calls) == more * len(queries)


def test_below_the_gate_a_mask_is_empty_and_a_label_stays_out(asked, images):
    supports, masks, queries = images
    own = asked("full")
    banks = [own.encode_support(*pair) for pair in zip(supports, masks, strict=True)]
    free, maps = own(queries, banks[0]), own.label(queries, banks)
    assert all(mask.any() for mask in free.masks)
    assert [len(shares) for shares in maps.presence] == [2, 2]
    assert [shares[0] for shares in maps.presence] == pytest.approx(free.presence)

    # a gate between the two queries
    gate = sum(free.presence) / 2
    gated = own(queries, banks[0], min_presence=gate)
    for mask, before, score, share in zip(
        gated.masks, free.masks, gated.scores, free.presence, strict=True
    ):
        assert np.array_equal(mask, before if share >= gate else np.zeros_like(before))
        assert score.any()
    shares = np.array(maps.presence)
    for number, labels in enumerate(own.label(queries, banks, min_presence=shares.min() + 1e-7)):
        there = {n + 1 for n in (0, 1) if shares[number, n] > shares.min()}
        assert set(np.unique(labels)) <= {0, *there}


def test_a_gate_needs_somebody_who_is_asked(pipe, images):
    supports, masks, queries = images
    bank = pipe.encode_support(supports, masks)
    with pytest.raises(InputError, match=r"min_presence=0.5 .* train-presence"):
        pipe(queries, bank, min_presence=0.5)
    with pytest.raises(InputError, match=r"min_presence=1.5 is not in \[0, 1\]"):
        pipe(queries, bank, min_presence=1.5)


def test_a_bank_keeps_its_signature_as_a_file_and_in_parts(asked, pipe, images, tmp_path):
    supports, masks, queries = images
    own = asked("fast")
    bank = own.encode_support(supports, masks)
    own.save_bank(bank, tmp_path / "bank.safetensors")
    loaded = own.load_bank(tmp_path / "bank.safetensors")
    alone = own(queries, bank).presence
    assert own(queries, loaded).presence == alone

    # shot by shot, put together again
    one, two = (own.encode_support(*pair) for pair in zip(supports, masks, strict=True))
    assert own(queries, one.concatenate(two)).presence == pytest.approx(alone, abs=1e-5)
    both = own.encode_support([[s] for s in supports], [[m] for m in masks])
    assert own(queries, both).presence == pytest.approx(
        [own(queries[0], one).presence[0], own(queries[1], two).presence[0]], abs=1e-5
    )

    # a bank of the time before the head cannot say, and says so; without a head it need not
    pipe.save_bank(pipe.encode_support(supports, masks), tmp_path / "old.safetensors")
    with pytest.raises(InputError, match=r"without a presence head.*encode the support again"):
        own(queries, own.load_bank(tmp_path / "old.safetensors"))
    assert pipe(queries, pipe.load_bank(tmp_path / "bank.safetensors")).presence is None


def test_a_damaged_signature_is_refused(asked, images, tmp_path):
    supports, masks, _ = images
    own, file = asked("fast"), tmp_path / "bank.safetensors"
    own.save_bank(own.encode_support(supports, masks), file)
    tensors = load_file(file)
    save_file(
        {**tensors, "signature/outline": torch.zeros(1, 7, 30)}, file, metadata={"shots": "2"}
    )
    with pytest.raises(InputError, match=r"outline: \[1, 7, 30\] is no signature of 2 shots"):
        own.load_bank(file)


# ---- as a folder ----


@pytest.fixture
def with_head(own_weight, base, pipe):
    """A golden weight dir with an untrained head."""
    torch.manual_seed(0)
    head = make_head(pipe.unet, "fast")
    head.start()
    unet = find_weights(own_weight, base).unet
    HeadPresence(head, {"seen": ["dog"], "fold": 0}).save(own_weight / "presence", unet)
    return own_weight


def open_head(weight, base, unet, asked="auto"):
    return open_presence(find_weights(weight, base), asked, unet)


def test_a_head_is_loaded_by_itself(with_head, base, pipe, images):
    supports, masks, queries = images
    loaded = load_pipeline(with_head, base)
    found = loaded(queries, loaded.encode_support(supports, masks, 64), image_size=64)
    assert loaded.presence.kind == "fast" and loaded.presence.record["seen"] == ["dog"]
    assert len(found.presence) == 2
    off = load_pipeline(with_head, base, presence="off")
    assert off(queries, off.encode_support(supports, masks, 64), image_size=64).presence is None


def test_weights_without_a_head_are_as_before(weight, base):
    assert type(load_pipeline(weight, base).presence) is NoPresence
    with pytest.raises(InputError, match=r"presence=full: no presence/ in .*train-presence"):
        load_pipeline(weight, base, presence="full")


def test_a_head_of_another_kind_is_not_taken(with_head, base, pipe):
    with pytest.raises(InputError, match=r"presence=full: the head in .* is fast"):
        open_head(with_head, base, pipe.unet, "full")


def test_a_head_of_other_weights_is_refused(with_head, base, pipe):
    file = with_head / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] += 0.1
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"presence: the head was trained on other weights"):
        open_head(with_head, base, pipe.unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is not 1"),
        ({"kind": "slow"}, "kind='slow'"),
        ({"hidden": "32"}, "is no presence head"),
        ({"heads": {"mid": 1}}, "heads is"),
        ({"inputs": 3}, "inputs is 3"),
    ],
)
def test_a_head_that_cannot_be_is_refused(with_head, base, pipe, change, message):
    file = with_head / "presence" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        open_head(with_head, base, pipe.unet)


def test_a_head_with_a_tensor_missing_or_not_finite_is_refused(with_head, base, pipe):
    file = with_head / "presence" / "head.safetensors"
    tensors = load_file(file)
    save_file({name: t for name, t in tensors.items() if name != "enter"}, file)
    with pytest.raises(InputError, match="is no presence head"):
        open_head(with_head, base, pipe.unet)
    save_file({**tensors, "leave": tensors["leave"] * float("nan")}, file)
    with pytest.raises(InputError, match=r"head.safetensors: leave .* not finite"):
        open_head(with_head, base, pipe.unet)
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is no presence head"):
        open_head(with_head, base, pipe.unet)


def test_another_variant_has_no_presence(with_head, base, pipe):
    record = {"variant": {"interaction": "qkv_fusion"}}
    (with_head / "diffews.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="presence needs interaction=kv_fusion"):
        open_head(with_head, base, pipe.unet)
    assert open_head(with_head, base, pipe.unet, "off").kind is None


def test_export_and_save_pretrained_carry_the_head(with_head, base, run, images, tmp_path):
    supports, masks, queries = images
    loaded = load_pipeline(with_head, base)
    want = loaded(queries, loaded.encode_support(supports, masks, 64), image_size=64).presence

    out = tmp_path / "fp32"
    assert (
        run("export", f"weight={with_head}", f"base={base}", f"out={out}", "dtype=fp32").code == 0
    )
    loaded.save_pretrained(tmp_path / "whole")
    for again in (load_pipeline(out, base), DiffewsPipeline.from_pretrained(tmp_path / "whole")):
        bank = again.encode_support(supports, masks, 64)
        assert again(queries, bank, image_size=64).presence == want

    # in half precision the hash is another, and the head goes along all the same
    half = tmp_path / "fp16"
    assert run("export", f"weight={with_head}", f"base={base}", f"out={half}").code == 0
    again = load_pipeline(half, base)
    found = again(queries, again.encode_support(supports, masks, 64), image_size=64).presence
    assert found == pytest.approx(want, abs=0.05)
    shutil.rmtree(half / "presence")
    assert load_pipeline(half, base).presence.kind is None
