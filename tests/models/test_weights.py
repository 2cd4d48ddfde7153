"""Weights are found in every published layout; what is damaged or foreign is refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from diffews import DiffewsPipeline, DiffewsUNet, InputError, load_pipeline
from diffews.cli.keys import CHECKOUT
from diffews.models.find import (
    DEFAULT_BASE,
    RECORD,
    find_weights,
    hash_weights,
    weight_files,
)
from diffews.models.hub import resolve
from diffews.models.weights import (
    empty_prompt_ids,
    encode_empty_prompt,
    load_module,
    load_text,
    load_unet,
    load_vae,
    save_text,
)

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def golden_unet(weight):
    return load_unet(weight / "unet" / "unet", torch.float32)


def assert_same_weights(module, other, **tolerance):
    theirs = other.state_dict()
    assert module.state_dict().keys() == theirs.keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=tolerance.get("atol", 0), msg=name
        )


# ---- layouts ----


@pytest.mark.parametrize("inside", ["unet/unet", "unet", "."])
@pytest.mark.parametrize("name", ["coco_fold0", "checkpoint-2000"])
def test_the_unet_is_found_in_every_published_layout(
    weight, base, golden_unet, tmp_path, name, inside
):
    folder = tmp_path / name
    shutil.copytree(weight / "unet" / "unet", folder / inside)
    assert_same_weights(load_pipeline(folder, base).unet, golden_unet)


def test_a_path_may_be_text_and_relative(weight, base, golden_unet, monkeypatch):
    monkeypatch.chdir(weight)
    assert_same_weights(load_pipeline(".", base=os.path.relpath(base)).unet, golden_unet)


def test_a_loaded_model_is_in_evaluation_mode_and_frozen(weight, base):
    pipe = load_pipeline(weight, base)
    for module in (pipe.unet, pipe.vae):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_files_are_found(base, golden_unet, tmp_path):
    unet = DiffewsUNet.from_config(golden_unet.config)
    unet.load_state_dict(golden_unet.state_dict())
    unet.half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert [file.name for file in (tmp_path / "unet").glob("*.safetensors")] == [
        FILE.replace(".s", ".fp16.s")
    ]
    loaded = load_pipeline(tmp_path, base).unet
    assert loaded.dtype == torch.float32
    assert_same_weights(loaded, golden_unet, atol=2e-3)


def test_sharded_files_are_found(base, golden_unet, tmp_path):
    golden_unet.save_pretrained(tmp_path / "unet", max_shard_size="800KB")
    files = weight_files(tmp_path / "unet")
    assert files[0].name.endswith(".index.json") and len(files) > 2
    assert_same_weights(load_pipeline(tmp_path, base).unet, golden_unet)


def test_pickled_weights_are_read_only_when_that_is_allowed(base, golden_unet, tmp_path):
    golden_unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin .*allow_bin=true"):
        load_pipeline(tmp_path, base)
    assert_same_weights(load_pipeline(tmp_path, base, allow_bin=True).unet, golden_unet)


def pickled(file):
    """Puts the weights of a safetensors file into a pickle in its place."""
    is_clip = file.name == "model.safetensors"
    moved = file.with_name("pytorch_model.bin") if is_clip else file.with_suffix(".bin")
    torch.save(load_file(file), moved)
    file.unlink()
    return moved


@pytest.mark.parametrize("file", [f"vae/{FILE}", "text_encoder/model.safetensors"])
def test_a_pickled_part_of_the_base_is_read_only_when_that_is_allowed(weight, own_base, file):
    moved = pickled(own_base / file)
    with pytest.raises(InputError, match="allow_bin=true") as error:
        load_pipeline(weight, own_base)
    assert str(moved) in str(error.value)
    load_pipeline(weight, own_base, allow_bin=True)


def test_what_nobody_reads_may_be_a_pickle(weight, own_base, golden_unet):
    golden_unet.save_pretrained(own_base / "unet", safe_serialization=False)
    save_text(load_text(own_base), own_base)
    pickled(own_base / "text_encoder" / "model.safetensors")
    (own_base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")  # safetensors comes first
    load_pipeline(weight, own_base)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_that_would_run_code_does_not_run(runs_code, base, golden_unet, tmp_path, allowed):
    golden_unet.save_config(tmp_path / "unet")
    marker, file = tmp_path / "it ran", tmp_path / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"conv_in.weight": runs_code(marker)}, file)
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin"):
        load_pipeline(tmp_path, base, allow_bin=allowed)
    file.write_bytes(pickle.dumps(runs_code(marker)))
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin"):
        load_pipeline(tmp_path, base, allow_bin=allowed)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("dtype", "vae_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_half_precision_keeps_the_vae_where_it_would_overflow(weight, base, dtype, vae_dtype):
    pipe = load_pipeline(weight, base, dtype=dtype)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (dtype, vae_dtype)


# ---- bases ----


def text_of(base):
    return load_text(base)["eval"]


def other_base(base, folder):
    """A base that can be told from the golden one."""
    shutil.copytree(base, folder)
    text = load_text(base)
    save_text({key: tensor + 1 for key, tensor in text.items()}, folder)
    return folder


@pytest.mark.parametrize("name", ["base", DEFAULT_BASE])
def test_a_base_beside_the_weight_dir_is_found(own_weight, base, name):
    beside = shutil.copytree(base, own_weight.parent / name)
    assert find_weights(own_weight).base == beside
    assert torch.equal(load_pipeline(own_weight).text["eval"], text_of(base))


def test_base_comes_before_the_long_name(own_weight, base):
    for name in ("base", DEFAULT_BASE):
        shutil.copytree(base, own_weight.parent / name)
    assert find_weights(own_weight).base.name == "base"


def test_a_recorded_base_comes_before_one_beside_and_a_given_one_before_all(
    own_weight, base, tmp_path
):
    shutil.copytree(base, own_weight.parent / "base")
    recorded = other_base(base, tmp_path / "elsewhere" / "recorded")
    (own_weight / RECORD).write_text(json.dumps({"base": os.path.relpath(recorded, own_weight)}))
    assert torch.equal(text_of(find_weights(own_weight).base), text_of(base) + 1)
    assert find_weights(own_weight, base).base == base


def test_weights_and_their_recorded_base_can_move_together(own_weight, base, tmp_path):
    recorded = shutil.copytree(base, own_weight.parent / "bases" / "mine")
    (own_weight / RECORD).write_text(json.dumps({"base": os.path.relpath(recorded, own_weight)}))
    moved = shutil.move(own_weight.parent, tmp_path / "moved")
    assert (
        find_weights(Path(moved) / own_weight.name).base.resolve()
        == (tmp_path / "moved" / "bases" / "mine").resolve()
    )


def test_a_recorded_base_that_is_gone_gives_way_to_one_beside(own_weight, base):
    (own_weight / RECORD).write_text(json.dumps({"base": "../gone"}))
    beside = shutil.copytree(base, own_weight.parent / "base")
    assert find_weights(own_weight).base == beside


def test_without_a_base_the_error_names_all_places(own_weight):
    with pytest.raises(InputError) as error:
        find_weights(own_weight)
    for place in (
        "nothing recorded",
        str(own_weight.parent / "base"),
        str(own_weight.parent / DEFAULT_BASE),
        "base=",
    ):
        assert place in str(error.value)
    (own_weight / RECORD).write_text(json.dumps({"base": "../gone"}))
    with pytest.raises(InputError, match=r"tried .*gone"):
        find_weights(own_weight)


def test_a_base_beside_a_linked_weight_dir_is_found(weight, base, tmp_path):
    (tmp_path / "coco_fold0").symlink_to(weight)
    (tmp_path / "base").symlink_to(base)
    assert find_weights(tmp_path / "coco_fold0").base == tmp_path / "base"


def test_a_base_needs_no_unet(weight, own_base):
    shutil.rmtree(own_base / "unet")
    assert load_pipeline(weight, own_base).text["eval"].shape == (1, 2, 32)


@pytest.mark.parametrize(
    ("removed", "says"),
    [("vae", "no vae/config.json"), ("text_encoder", "neither text.safetensors nor text_encoder")],
)
def test_a_base_without_a_part_is_refused(weight, own_base, removed, says):
    shutil.rmtree(own_base / removed)
    with pytest.raises(InputError, match=says):
        load_pipeline(weight, own_base)


def test_a_missing_base_is_refused(weight, tmp_path):
    with pytest.raises(InputError, match=r"base=.*none: no such folder"):
        find_weights(weight, tmp_path / "none")


@pytest.fixture
def hub(base, monkeypatch):
    """What the hub is asked for: its cache holds someone/cached, it has someone/there."""
    asked = []

    def snapshot_download(name, local_files_only=False, revision=None, **keys):
        asked.append((name, revision, "cache" if local_files_only else "network"))
        assert keys["etag_timeout"] == 10
        if name == "someone/cached" or name == "someone/there" and not local_files_only:
            return str(base.parent if "sub/vae/*" in keys["allow_patterns"] else base)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_only_what_is_named_as_a_hub_id_is_fetched_and_aloud(weight, base, hub, capsys):
    assert find_weights(weight, "hub:someone/there@v2").base == base
    assert hub == [("someone/there", "v2", "network")]
    assert "someone/there" in capsys.readouterr().err  # a line before the call

    assert find_weights(weight, "someone/cached").base == base
    with pytest.raises(InputError, match="base=someone/there: no such folder"):
        find_weights(weight, "someone/there")
    assert {where for _, _, where in hub[1:]} == {"cache"}
    assert capsys.readouterr().err == ""
    assert resolve(str(base)) == base and resolve(f"{base}/typo") == base / "typo"
    assert resolve("hub:someone/there/sub") == base.parent / "sub"


def test_weights_come_from_the_hub_with_their_name(weight, base, hub, monkeypatch):
    there = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **keys: str(weight) if name == "someone/mine_fold2" else there(name, **keys),
    )
    found = find_weights("hub:someone/mine_fold2@refs/pr/1", base)
    assert found.unet == weight / "unet" / "unet" and found.base == base
    assert (found.name, found.hub_id) == ("mine_fold2", "hub:someone/mine_fold2@refs/pr/1")
    assert find_weights(weight, base).name == weight.name
    with pytest.raises(InputError, match="weight=someone/mine: no such folder"):
        find_weights("someone/mine", base)


@pytest.mark.parametrize("name", ["hub:", "hub:one", "hub:a/../b", "hub:a/b@../c", "hub:a/b@"])
def test_a_hub_id_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="hub:owner/name"):
        resolve(name)


def test_a_hub_id_in_a_downloaded_record_is_not_fetched(own_weight, hub):
    record = own_weight / "diffews.json"
    for name in ("someone/there", "hub:someone/there"):
        record.write_text(json.dumps({"base": name}))
        with pytest.raises(InputError, match="base=DIR") as error:
            find_weights(own_weight)
        assert "someone/there" in str(error.value)
    record.write_text(json.dumps({"base": "hub:someone/cached"}))
    find_weights(own_weight)
    assert {where for _, _, where in hub} == {"cache"}
    record.write_text(json.dumps({"base": 3}))
    with pytest.raises(InputError, match="diffews.json: base is 3"):
        find_weights(own_weight)


def test_a_hub_id_that_cannot_be_fetched_is_one_line(weight):
    with pytest.raises(InputError, match="no-one/nothing .*not be fetched") as error:  # offline
        find_weights(weight, "hub:no-one/nothing")
    assert "\n" not in str(error.value)


# ---- the text condition ----


def test_the_empty_prompt_is_two_tokens_in_evaluation_and_77_in_training(base):
    ids = empty_prompt_ids(base)
    begin, end = 3, 4  # of the golden tokenizer
    assert ids == {"eval": [begin, end], "train": [begin, end] + [0] * 75}


def test_the_kept_text_equals_what_the_text_encoder_gives(base, own_base):
    ids = empty_prompt_ids(base)
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    with torch.no_grad():
        want = {key: encoder(torch.tensor([ids[key]]))[0] for key in ids}

    encoded = encode_empty_prompt(base)
    assert (encoded["eval"].shape, encoded["train"].shape) == ((1, 2, 32), (1, 77, 32))
    save_text(encoded, own_base)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(own_base / part)
    kept = load_text(own_base)
    for key in ("eval", "train"):
        torch.testing.assert_close(encoded[key], want[key])
        assert torch.equal(kept[key], encoded[key])


def test_kept_text_is_read_instead_of_the_encoder(base, tmp_path):
    other = other_base(base, tmp_path / "other")
    assert torch.equal(text_of(other), text_of(base) + 1)


def test_kept_text_without_both_keys_is_refused(own_base):
    save_file({"eval": torch.zeros(1, 2, 32)}, own_base / "text.safetensors")
    with pytest.raises(InputError, match="text.safetensors cannot be read .*eval and train"):
        load_text(own_base)


def test_a_damaged_tokenizer_or_text_encoder_is_refused(own_base):
    encoder = own_base / "text_encoder" / "model.safetensors"
    content = encoder.read_bytes()
    encoder.write_bytes(content[:-100])
    with pytest.raises(InputError, match="text_encoder does not load"):
        load_text(own_base)
    encoder.write_bytes(content)
    for file in (own_base / "tokenizer").iterdir():
        file.write_text("{")
    with pytest.raises(InputError, match="tokenizer does not load"):
        load_text(own_base)


def test_weight_and_base_that_do_not_belong_together_are_refused(own_weight, own_base):
    save_text({"eval": torch.zeros(1, 2, 8), "train": torch.zeros(1, 77, 8)}, own_base)
    with pytest.raises(InputError, match="text of 32 channels, the base makes 8"):
        load_pipeline(own_weight, own_base)


# ---- damaged and foreign weights ----


@pytest.fixture
def config_file(own_weight):
    return own_weight / "unet" / "unet" / "config.json"


def change(file, **keys):
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def refusal(weight, base):
    with pytest.raises(InputError) as error:
        load_pipeline(weight, base)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_weight_dir_says_where_weights_can_be_had(tmp_path, base):
    assert "none: no such folder" in refusal(tmp_path / "none", base)


def test_a_folder_without_a_config_is_refused(tmp_path, base):
    assert f"weight={tmp_path}: no config.json" in refusal(tmp_path, base)


def test_a_config_without_weights_is_refused(own_weight, base):
    (own_weight / "unet" / "unet" / FILE).unlink()
    assert f"no {FILE}" in refusal(own_weight, base)


@pytest.mark.parametrize("kept", [0, 4, 1000, 2_000_000])
def test_a_truncated_safetensors_file_is_refused(own_weight, base, kept):
    file = own_weight / "unet" / "unet" / FILE
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} does not load" in refusal(own_weight, base)


def test_a_truncated_vae_is_refused(weight, own_base):
    file = own_base / "vae" / FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} does not load" in refusal(weight, own_base)


def test_a_config_of_another_class_is_refused(own_weight, base, config_file):
    change(config_file, _class_name="UNet2DModel")
    assert "_class_name is 'UNet2DModel'" in refusal(own_weight, base)


@pytest.mark.parametrize(
    "keys",
    [
        {"block_out_channels": [32, 32, 32, 32]},  # other shapes
        {"layers_per_block": 2},  # tensors are missing
        {"mid_block_type": None},  # tensors are left over
        {"in_channels_ref": 5},
        {"in_channels": 9, "in_channels_ref": 18},
        {"down_block_types": ["NoSuchBlock"] * 4},
    ],
)
def test_a_config_of_another_architecture_is_refused(own_weight, base, config_file, keys):
    change(config_file, **keys)
    refusal(own_weight, base)


@pytest.mark.parametrize("content", ["", "{", "[]", "hello"])
def test_a_config_that_is_no_json_object_is_refused(own_weight, base, config_file, content):
    config_file.write_text(content)
    assert "config.json" in refusal(own_weight, base)


def test_a_plain_stable_diffusion_unet_is_refused_with_the_cure(own_weight, base):
    file = own_weight / "unet" / "unet" / FILE
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("conv_in_ref")}, file)
    message = refusal(own_weight, base)
    assert "2 tensors" in message and "conv_in_ref" in message and "diffews init-base" in message


def test_a_vae_is_no_unet(base):
    with pytest.raises(InputError, match="not a DiffewS UNet"):
        load_unet(base / "vae", torch.float32)
    with pytest.raises(InputError, match="tensors"):
        load_module(DiffewsUNet, base / "vae", torch.float32)


# ---- image size, hash ----


def test_the_image_size_is_as_asked_else_as_recorded_else_512(own_weight, base):
    assert find_weights(own_weight, base).image_size() == 512
    (own_weight / RECORD).write_text(json.dumps({"image_size": 64}))
    source = find_weights(own_weight, base)
    assert (source.image_size(), source.image_size(96)) == (64, 96)
    assert load_pipeline(own_weight, base).config.image_size == 64


@pytest.mark.parametrize("size", [4, 60, 500])
def test_an_image_size_must_be_a_multiple_of_the_vaes_factor(weight, base, size):
    with pytest.raises(InputError, match=rf"image_size={size} .*multiple of 8"):
        find_weights(weight, base).image_size(size)


def test_the_hash_is_of_contents_and_not_of_places(weight, base, own_weight, own_base):
    want = hash_weights(find_weights(weight, base))
    assert hash_weights(find_weights(own_weight, own_base)) == want
    for file, changed in (
        (own_weight / "unet" / "unet" / FILE, "weight_sha256"),
        (own_base / "vae" / FILE, "base_sha256"),
        (own_base / "text_encoder" / "model.safetensors", "base_sha256"),
    ):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        got = hash_weights(find_weights(own_weight, own_base))
        assert {key for key in want if got[key] != want[key]} == {changed}
        file.write_bytes(content)


def test_the_vae_of_a_base_is_loaded_as_it_is(base):
    vae = load_vae(base, torch.float32)
    stored = load_file(base / "vae" / FILE)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_a_saved_pipeline_is_a_weight_dir_and_a_base_in_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = load_pipeline(tmp_path / "saved", base=tmp_path / "saved")
    assert isinstance(again, DiffewsPipeline)
    assert_same_weights(again.unet, pipe.unet)
    assert_same_weights(again.vae, pipe.vae)
    assert torch.equal(again.text["train"], pipe.text["train"])


# ---- what ships ----


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize(("kind", "threshold"), [("shapes", 0.25), ("plus", 0.5)])
def test_the_shipped_weights_say_what_they_are(kind, threshold, fold):
    folder = CHECKOUT / "weight" / "tiny" / f"{kind}_fold{fold}"
    source = find_weights(folder)
    assert (source.record["fold"], source.threshold()) == (fold, threshold)
    assert source.base.samefile(folder.parent / "base")
    for file in folder.rglob("*.json"):  # nothing of the machine on which they were made
        assert '"/' not in file.read_text()
