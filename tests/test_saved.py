"""A pipeline's parts, files and forms of output: what users of diffusers call."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import diffews.models.saved
from diffews import DiffewsPipeline, InputError

UNET = "unet/diffusion_pytorch_model.safetensors"
NOISE = {"generation": "multi_step_noise_to_mask"}


@pytest.fixture
def ask(picture, square_mask):
    """ask(pipe, queries=1, ...): the pipeline's answer to random pictures."""

    def call(pipe, queries=1, **keys):
        bank = pipe.encode_support(picture(1, 32, 32), square_mask(32, 32))
        return pipe([picture(2 + i, 32, 32) for i in range(queries)], bank, **keys)

    return call


@pytest.fixture(scope="module")
def saved(small_pipe, tmp_path_factory):
    """A folder that `save_pretrained` wrote, never changed."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    small_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def own(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "own")


def same(one, other):
    return all(map(np.array_equal, one.scores, other.scores))


# ---- forms of output ----


def test_arrays_tensors_and_pictures_hold_the_same(small_pipe, ask):
    pipe = small_pipe()
    want, tensors, pictures = (ask(pipe, 2, output_type=kind) for kind in ("np", "pt", "pil"))
    assert same(want, ask(pipe, 2))
    for i in range(2):
        assert tensors.masks[i].dtype == torch.bool and tensors.scores[i].dtype == torch.float32
        assert np.array_equal(tensors.masks[i].numpy(), want.masks[i])
        assert np.array_equal(tensors.scores[i].numpy(), want.scores[i])
        assert isinstance(pictures.masks[i], Image.Image) and pictures.masks[i].mode == "L"
        assert np.array_equal(np.asarray(pictures.masks[i]), 255 * want.masks[i].astype(np.uint8))
        assert np.array_equal(np.asarray(pictures.scores[i]), want.scores[i])

    with pytest.raises(InputError, match="output_type='latent' is not one of np, pt, pil"):
        ask(pipe, output_type="latent")


def test_without_a_dict_the_same_is_a_tuple(small_pipe, ask):
    pipe = small_pipe()
    want, got = ask(pipe), ask(pipe, return_dict=False)
    assert type(got) is tuple and len(got) == len(want.to_tuple()) == 2
    assert np.array_equal(got[0][0], want.masks[0]) and np.array_equal(got[1][0], want.scores[0])


# ---- what multi-step generations take ----


def test_a_generator_draws_the_noise_of_each_query(small_pipe, ask):
    pipe = small_pipe(variant_keys=NOISE)
    pipe.denoising_steps = 2

    def drawn(seed, **keys):
        return ask(pipe, 2, generator=torch.Generator().manual_seed(seed), **keys)

    one = drawn(1)
    assert same(one, drawn(1)) and not same(one, drawn(2)) and not same(one, ask(pipe, 2))

    # a query's noise depends neither on the batch nor on who else is asked
    together = drawn(1, batch=2)
    assert max(np.abs(a - b).max() for a, b in zip(one.scores, together.scores, strict=True)) < 1e-2
    each = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert np.array_equal(ask(pipe, 2, generator=each).scores[0], one.scores[0])
    with pytest.raises(InputError, match="2 generators for 1 queries"):
        ask(pipe, generator=each)


def test_a_generator_changes_nothing_in_one_step(small_pipe, ask):
    pipe = small_pipe()
    assert same(ask(pipe), ask(pipe, generator=torch.Generator().manual_seed(1)))


def test_the_number_of_steps_is_that_of_the_call(small_pipe, ask):
    pipe = small_pipe(variant_keys=NOISE)
    pipe.denoising_steps = 3
    assert same(ask(pipe), ask(pipe, num_inference_steps=3))
    assert not same(ask(pipe), ask(pipe, num_inference_steps=2))
    for count in (0, 1000):
        with pytest.raises(InputError, match=f"num_inference_steps={count} is not between"):
            ask(pipe, num_inference_steps=count)
    with pytest.raises(InputError, match="num_inference_steps=1: these weights answer in one step"):
        ask(small_pipe(), num_inference_steps=1)


# ---- parts ----


@pytest.mark.parametrize(
    "make", [lambda p: DiffewsPipeline(**p.components), DiffewsPipeline.from_pipe]
)
def test_a_pipeline_of_anothers_parts_answers_alike(small_pipe, ask, make):
    first = small_pipe(variant_keys=NOISE, threshold=0.5)
    first.denoising_steps = 2
    other = make(first)
    assert other.unet is first.unet and other.vae is first.vae and other.text is first.text
    assert other.components == first.components
    assert same(ask(first), ask(other, num_inference_steps=2))
    assert np.array_equal(ask(first).masks[0], ask(other, num_inference_steps=2).masks[0])


def test_from_pipe_changes_what_it_is_given_and_keeps_the_precision(small_pipe):
    first = small_pipe().to(torch.bfloat16)
    other = DiffewsPipeline.from_pipe(first, image_size=64)
    assert (other.config.image_size, first.config.image_size) == (64, 32)
    assert first.unet.dtype == other.unet.dtype == torch.bfloat16
    assert DiffewsPipeline.from_pipe(first, dtype=torch.float32).unet.dtype == torch.float32
    with pytest.raises(InputError, match="takes a DiffewsPipeline, not a DiffusionPipeline"):
        DiffewsPipeline.from_pipe(DiffusionPipeline())


# ---- files ----


def test_diffusers_own_class_says_which_to_import(saved):
    with pytest.raises(InputError, match="from diffews import DiffewsPipeline"):
        DiffusionPipeline.from_pretrained(saved)


def test_a_folder_of_both_small_vaes_and_a_variant_comes_back_whole(small_pipe, ask, tmp_path):
    halves = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    torch.manual_seed(3)
    tiny = AutoencoderTiny(**halves, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    pipe = small_pipe(variant_keys={"interaction": "qkv_fusion"}, encoder=tiny, decoder=tiny)
    pipe.save_pretrained(tmp_path / "saved")

    again = DiffewsPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(again.encoder, AutoencoderTiny) and again.decoder is not None
    assert again.config.variant_keys == pipe.config.variant_keys
    assert same(ask(pipe), ask(again))


def test_a_variant_of_the_files_is_read_where_it_is_asked_for(small_pipe, ask, own):
    other = small_pipe(seed=1)
    other.save_pretrained(own, variant="ema")
    plain, ema = (DiffewsPipeline.from_pretrained(own, variant=v) for v in (None, "ema"))
    assert same(ask(ema), ask(other)) and not same(ask(plain), ask(other))
    with pytest.raises(InputError, match="no weights of variant='emma'"):
        DiffewsPipeline.from_pretrained(own, variant="emma")


def test_float16_keeps_the_vae_in_float32_unless_it_is_named(saved):
    half = DiffewsPipeline.from_pretrained(saved, torch_dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    kinds = {"default": torch.float32, "vae": torch.float16}
    mixed = DiffewsPipeline.from_pretrained(saved, dtype=kinds)
    assert (mixed.unet.dtype, mixed.vae.dtype) == (torch.float32, torch.float16)
    with pytest.raises(InputError, match="dtype='fp16' is no torch.dtype"):
        DiffewsPipeline.from_pretrained(saved, dtype="fp16")


def test_parts_that_are_given_are_not_read(small_pipe, own, ask):
    shutil.rmtree(own / "unet")
    (own / "unet").mkdir()
    (own / "unet" / "config.json").write_text('{"_class_name": "DiffewsUNet"}')
    unet = small_pipe(seed=1).unet
    pipe = DiffewsPipeline.from_pretrained(own, unet=unet, threshold=0.5)
    assert pipe.unet is unet and pipe.config.threshold == 0.5 and pipe.config.image_size == 32


def test_no_weight_is_left_to_chance(own):
    weights = load_file(own / UNET)
    for name in ("conv_in_ref.weight", "conv_out.bias"):
        save_file({k: v for k, v in weights.items() if k != name}, own / UNET)
        with pytest.raises(InputError, match=f"lack 1 tensors, the first is {name}"):
            DiffewsPipeline.from_pretrained(own)
    save_file({**weights, "more": torch.zeros(1)}, own / UNET)
    with pytest.raises(InputError, match="no place for, as more"):
        DiffewsPipeline.from_pretrained(own)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"revison": "v1"}, "no 'revison'; did you mean 'revision'"),
        ({"device_map": "balanced"}, "device_map='balanced'"),
        ({"device_map": "nowhere"}, "nowhere"),
        ({"use_safetensors": False}, "pickles"),
        ({"quantization_config": 1}, "unet=DiffewsUNet.from_pretrained"),
        ({"variant": "../ema"}, "no word"),
    ],
)
def test_what_from_pretrained_does_not_know_is_one_line(saved, keys, words):
    with pytest.raises(InputError, match=words) as error:
        DiffewsPipeline.from_pretrained(saved, **keys)
    assert "\n" not in str(error.value)


def test_folders_of_other_things_are_refused(own, tmp_path, weight):
    with pytest.raises(InputError, match="no such folder; .*hub:owner/name"):
        DiffewsPipeline.from_pretrained(tmp_path / "typo")
    with pytest.raises(InputError, match="load_pipeline"):
        DiffewsPipeline.from_pretrained(weight)
    index = own / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "OtherPipeline"}))
    with pytest.raises(InputError, match="of a OtherPipeline"):
        DiffewsPipeline.from_pretrained(own)


def test_no_pickle_is_written(small_pipe, tmp_path):
    with pytest.raises(InputError, match="safe_serialization=False"):
        small_pipe().save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


# ---- the hub ----


@pytest.fixture
def hub_cache(saved, tmp_path):
    """A cache of the hub that holds someone/pipeline in its revision v2."""
    cache = tmp_path / "cache" / "models--someone--pipeline"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v2").write_text("0" * 40)
    shutil.copytree(saved, cache / "snapshots" / ("0" * 40))
    return tmp_path / "cache"


def test_a_pipeline_comes_from_the_hubs_cache(hub_cache, ask, small_pipe):
    for name, keys in (
        ("someone/pipeline", {"revision": "v2"}),
        ("someone/pipeline@v2", {}),
        ("hub:someone/pipeline", {"revision": "v2", "local_files_only": True}),
    ):
        pipe = DiffewsPipeline.from_pretrained(name, cache_dir=hub_cache, **keys)
        assert same(ask(pipe), ask(small_pipe()))
    with pytest.raises(InputError, match="no such folder"):
        DiffewsPipeline.from_pretrained("someone/pipeline", cache_dir=hub_cache)
    with pytest.raises(InputError, match="name one revision"):
        DiffewsPipeline.from_pretrained("hub:someone/pipeline@v1", revision="v2")


def test_the_hub_is_asked_as_the_caller_says(saved, monkeypatch, capsys):
    asked = []

    def snapshot_download(name, **keys):
        asked.append((name, keys))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    keys = {"revision": "v2", "token": "secret", "cache_dir": "there", "force_download": True}
    DiffewsPipeline.from_pretrained("hub:someone/pipeline", **keys)
    ((name, given),) = asked
    assert name == "someone/pipeline" and keys.items() <= given.items()
    assert "secret" not in capsys.readouterr().err


@pytest.fixture
def uploads(monkeypatch):
    """What the hub is sent, instead of sending it."""
    sent = []

    def create_repo(name, **keys):
        sent.append(("create", name, keys))
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def upload_folder(repo_id, folder_path, **keys):
        files = sorted(str(f.relative_to(folder_path)) for f in Path(folder_path).rglob("*.*"))
        sent.append(("upload", repo_id, {**keys, "files": files}))

    monkeypatch.setattr(diffews.models.saved, "create_repo", create_repo)
    monkeypatch.setattr(diffusers.utils.hub_utils, "upload_folder", upload_folder)
    return sent


def test_a_whole_repository_is_uploaded_with_a_card(small_pipe, uploads, tmp_path):
    pipe = small_pipe(threshold=0.5)
    pipe.unet.training_record = {"fold": 2, "config": {"benchmark": "coco20i", "shots": 3}}
    result = {"benchmark": "coco20i", "fold": 2, "shots": 1, "episodes": 10, "miou": 12.345}
    result |= {"miou_interval": [10, 14], "fb_iou": 50.0}
    keys = {"private": True, "token": "secret", "commit_message": "first"}
    pipe.save_pretrained(tmp_path / "mine", push_to_hub=True, results=[result], **keys)

    (_, name, made), (_, repo, sent) = uploads
    assert name == "mine" and made == {"exist_ok": True, "private": True, "token": "secret"}
    assert repo == "me/mine" and (sent["token"], sent["commit_message"]) == ("secret", "first")
    for file in ("README.md", "diffews.json", "model_index.json", "text.safetensors", UNET):
        assert file in sent["files"]
    card = (tmp_path / "mine" / "README.md").read_text()
    for words in (
        "- fold: 2 (its novel classes were never trained on)",
        "- shots: 3",
        "| coco20i | 2 | 1 | 10 | 12.35 |",
        'load_pipeline("hub:me/mine")',
        "0.5 of the",
        "## Licence",
    ):
        assert words in card
    assert "secret" not in card

    # another UNet was not trained so; a card that is there stays
    pipe.unet = small_pipe(seed=1).unet
    pipe.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="us/other")
    assert "fold: 2" not in (tmp_path / "other" / "README.md").read_text()
    (tmp_path / "other" / "README.md").write_text("ours")
    pipe.save_pretrained(tmp_path / "other", push_to_hub=True)
    assert (tmp_path / "other" / "README.md").read_text() == "ours"


def test_what_cannot_be_uploaded_is_one_line(small_pipe, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="repo_id= is for push_to_hub=True"):
        small_pipe().save_pretrained(tmp_path / "new", repo_id="us/other")
    assert not (tmp_path / "new").exists()

    def refuses(name, **keys):
        raise OSError("no way\nthere")

    monkeypatch.setattr(diffews.models.saved, "create_repo", refuses)
    with pytest.raises(InputError, match="could not be uploaded as us/other") as error:
        small_pipe().save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="us/other")
    assert "\n" not in str(error.value)
