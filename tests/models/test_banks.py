"""Support banks as files, and several classes at once: label maps against separate calls."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffews import DiffewsPipeline, DiffewsUNet, InputError, SupportBank


@pytest.fixture
def bank(pipe, picture, square_mask):
    return pipe.encode_support(
        [picture(1), picture(2, 50, 40)], [square_mask(), square_mask(50, 40)]
    )


def assert_same(one, other):
    assert one.shots == other.shots and len(one) > 0
    for (layer, key, value), (name, *want) in zip(one, other, strict=True):
        assert layer == name and torch.equal(key, want[0]) and torch.equal(value, want[1])
        seen, want = one.seen(layer, 0), other.seen(layer, 0)
        assert torch.equal(seen, want) if seen is not None else want is None


@pytest.fixture(scope="module")
def other_pipe(pipe):
    """A pipeline of other weights, of the same sizes."""
    unet = DiffewsUNet.from_config(pipe.unet.config).eval()
    unet.load_state_dict({**pipe.unet.state_dict(), "conv_in.bias": pipe.unet.conv_in.bias + 0.1})
    return DiffewsPipeline(unet, pipe.vae, pipe.text, image_size=64)


def test_a_bank_comes_back_to_the_bit_and_answers_alike(pipe, bank, picture, tmp_path):
    pipe.save_bank(bank, tmp_path / "bank.safetensors")
    loaded = pipe.load_bank(tmp_path / "bank.safetensors")
    assert_same(loaded, bank)
    assert np.array_equal(pipe(picture(3), loaded).scores[0], pipe(picture(3), bank).scores[0])


def test_a_bank_of_other_weights_is_refused(pipe, other_pipe, bank, tmp_path):
    pipe.save_bank(bank, tmp_path / "bank.safetensors")
    with pytest.raises(InputError, match=r"bank.safetensors: other weights"):
        other_pipe.load_bank(tmp_path / "bank.safetensors")


def test_a_bank_without_a_hash_loads_anywhere(pipe, other_pipe, bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    for pipeline in (pipe, other_pipe):
        assert_same(pipeline.load_bank(tmp_path / "bank.safetensors"), bank)
    pipe.save_bank(bank, tmp_path / "named.safetensors")
    assert_same(
        SupportBank.load(tmp_path / "named.safetensors"), bank
    )  # nobody says whose it should be


def test_a_bank_of_another_network_is_refused(pipe, unet, tmp_path):
    torch.manual_seed(0)
    with torch.no_grad():
        latents = torch.randn(1, 8, 16, 16)
        foreign = unet.encode_support(latents, torch.tensor(1), torch.randn(1, 2, 24), 1)
    layers = {layer: (key, value) for layer, key, value in list(foreign)[:-1]}
    SupportBank(1, layers).save(tmp_path / "bank.safetensors")
    with pytest.raises(InputError, match="not those of this UNet"):
        pipe.load_bank(tmp_path / "bank.safetensors")


def test_a_bank_with_hidden_tokens_comes_back(unet, tmp_path):
    torch.manual_seed(0)
    visible = torch.rand(4, 1, 16, 16) > 0.7
    words = torch.randn(1, 2, 24)
    with torch.no_grad():
        hidden = unet.encode_support(torch.randn(4, 4, 16, 16), torch.tensor(1), words, 2, visible)
        hidden.save(tmp_path / "bank.safetensors")
        loaded = SupportBank.load(tmp_path / "bank.safetensors")
        assert_same(loaded, hidden)
        assert all(loaded.seen(layer, 0) is not None for layer, _, _ in loaded)
        query = torch.randn(2, 4, 16, 16)
        one, other = (
            unet.segment(query, torch.tensor(1), words.expand(2, -1, -1), b)
            for b in (hidden, loaded)
        )
    assert torch.equal(one, other)


# ---- several classes ----


def by_hand(pipe, query, banks, **settings):
    """The class of the highest score among those above their threshold."""
    outputs = [pipe(query, bank, **settings) for bank in banks]
    scores = np.stack([np.where(o.masks[0], o.scores[0], 0) for o in outputs])
    return np.where(scores.max(0) > 0, scores.argmax(0) + 1, 0)


@pytest.fixture
def banks(pipe, picture, square_mask):
    masks = [square_mask(), ~square_mask(), square_mask(64, 64)[::-1] * (np.arange(64) % 2 > 0)]
    return [pipe.encode_support(picture(seed), mask) for seed, mask in enumerate(masks, start=10)]


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.6}, {"threshold": 0.45, "threshold_rule": "absolute"}]
)
def test_a_label_map_is_that_of_separate_calls(pipe, banks, picture, settings):
    queries = [picture(20), picture(21, 50, 70)]
    maps = pipe.label(queries, banks, **settings)
    for query, labels in zip(queries, maps, strict=True):
        want = by_hand(pipe, query, banks, **settings)
        assert labels.dtype == np.uint8 and labels.shape == query.size[::-1]
        assert np.array_equal(labels, want)
    together = pipe.label(queries, banks, batch=2, **settings)
    assert all((a != b).mean() < 0.005 for a, b in zip(maps, together, strict=True))


def test_bad_banks_for_a_label_map_are_refused(pipe, banks, picture, square_mask):
    with pytest.raises(InputError, match="0 banks"):
        pipe.label(picture(20), [])
    two = pipe.encode_support([[picture(1)], [picture(2)]], [[square_mask()], [square_mask()]])
    with pytest.raises(InputError, match="bank of 2 support sets"):
        pipe.label(picture(20), [banks[0], two])


# ---- the command ----


@pytest.fixture
def files(picture, square_mask, tmp_path):
    """Three supports with masks, one query; -> their folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        picture(number, 60, 50).save(folder / f"s{number}.png")
        Image.fromarray(square_mask(60, 50) ^ (number == 1)).save(folder / f"m{number}.png")
    picture(7, 70, 40).save(folder / "query.png")
    return folder


@pytest.fixture
def words(weight, base, files, tmp_path):
    return [
        *("segment", f"weight={weight}", f"base={base}", "image_size=64", "threads=1"),
        *(f"query={files / 'query.png'}", f"out={tmp_path / 'out'}"),
    ]


def pairs(files, *numbers):
    return [
        f"{key}={','.join(str(files / f'{key[0]}{n}.png') for n in numbers)}"
        for key in ("support", "mask")
    ]


def png(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_classes_become_a_label_map_and_their_banks_give_it_again(
    run, words, files, pipe, square_mask, tmp_path
):
    outcome = run(
        *words, *pairs(files, 0, 1, 2), "classes=a,b,a", f"save_bank={tmp_path / 'banks'}"
    )
    assert outcome.code == 0, outcome
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "labels.json",
        "query_labels.png",
        "query_overlay.jpg",
    }
    assert json.loads((out / "labels.json").read_text()) == {"1": "a", "2": "b"}

    images = [Image.open(files / f"s{n}.png").convert("RGB") for n in range(3)]
    masks = [png(files / f"m{n}.png") for n in range(3)]
    banks = [
        pipe.encode_support([images[0], images[2]], [masks[0], masks[2]]),
        pipe.encode_support(images[1], masks[1]),
    ]
    labels = png(out / "query_labels.png")
    assert labels.shape == (40, 70)
    assert np.array_equal(
        labels, by_hand(pipe, Image.open(files / "query.png").convert("RGB"), banks)
    )

    saved = [tmp_path / "banks" / f"{name}.safetensors" for name in "ab"]
    assert run(*words, f"bank={saved[0]},{saved[1]}", f"out={tmp_path / 'again'}").code == 0
    for name in ("labels.json", "query_overlay.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    # the file also says what it was made with: there supports, here banks
    assert np.array_equal(png(tmp_path / "again" / "query_labels.png"), labels)


def test_one_bank_gives_the_mask_of_its_support(run, words, files, tmp_path):
    file = tmp_path / "cat.safetensors"
    assert run(*words, *pairs(files, 0, 1), f"save_bank={file}").code == 0
    assert run(*words, f"bank={file}", f"out={tmp_path / 'again'}").code == 0
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {"query_mask.png", "query_overlay.jpg"}
    again, first = (png(tmp_path / folder / "query_mask.png") for folder in ("again", "out"))
    assert np.array_equal(again, first)


def test_what_does_not_go_together_is_refused(run, refused, words, files, tmp_path):
    file = tmp_path / "cat.safetensors"
    assert run(*words, *pairs(files, 0), f"save_bank={file}", f"out={tmp_path / 'first'}").code == 0
    twin = tmp_path / "elsewhere" / "cat.safetensors"
    twin.parent.mkdir()
    twin.write_bytes(file.read_bytes())
    for more, says in [
        ([f"bank={file}", *pairs(files, 0)], "give either bank= or support= with mask="),
        (
            [*pairs(files, 0, 1), "classes=a"],
            "1 classes for 2 support pictures; name the class of each",
        ),
        (
            [f"bank={tmp_path / 'none.safetensors'}"],
            "none.safetensors: no such file; save_bank= writes one",
        ),
        ([f"bank={file},{twin}"], "two banks are named 'cat'; rename one"),
        ([], "support="),
    ]:
        assert says in refused(*words, *more)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_bank_is_refused(refused, words, tmp_path):
    (tmp_path / "cat.safetensors").write_text("hello")
    assert "is not a support bank" in refused(*words, f"bank={tmp_path / 'cat.safetensors'}")


def test_a_bank_that_hides_nothing_is_joined_to_one_that_does(pipe):
    layers = {"a": (torch.randn(1, 4, 2), torch.randn(1, 4, 2))}
    seen = torch.tensor([1.0, 0, 0, 1]).reshape(1, 4, 1)
    plain, hiding = SupportBank(1, layers), SupportBank(1, {"a": (*layers["a"], seen)})
    for joined, want in (
        (plain.concatenate(hiding), [1] * 4 + [1, 0, 0, 1]),
        (hiding.concatenate(plain), [1, 0, 0, 1] + [1] * 4),
    ):
        assert joined.shots == 2 and joined.seen("a", 1)[0, 0, 0].tolist() == [
            True,
            *map(bool, want),
        ]
    assert plain.concatenate(plain).seen("a", 1) is None
