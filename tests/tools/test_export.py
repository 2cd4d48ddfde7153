"""`diffews export format=onnx|torch`: graphs that answer as torch does; what is refused."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffews import load_pipeline
from diffews.models.card import model_card
from diffews.models.find import find_weights
from diffews.runtime.files import hash_files

pytest_plugins = ("onnx_fixtures",)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
needs_exporter = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="pip install 'diffews[onnx]'",
)


@pytest.fixture
def words(weight, base, tmp_path):
    return ["export", f"weight={weight}", f"base={base}", f"out={tmp_path / 'out'}", "format=onnx"]


# ---- one graph, here and now ----


@needs_exporter
@torch.no_grad()
def test_a_graph_is_written_checked_and_shares_its_weights(tmp_path):
    from torch.export import Dim

    from diffews.tools.export import Graph, SharedWeights, _check, _trace, _write_onnx

    # a few layers of the kinds that the model has
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(4, 96, 3, padding=1), torch.nn.GroupNorm(4, 96), torch.nn.SiLU()
    free = {0: Dim("batch"), 2: 4 * Dim("side")}
    example = {"mask_latents": torch.randn(2, 4, 8, 8)}
    graph = Graph(torch.nn.Sequential(*layers), example, ["decoded"], [free])
    program, weights = _trace(graph), SharedWeights(tmp_path / "weights.data")
    for name in ("one", "other"):
        _write_onnx(program, graph, tmp_path / f"{name}.onnx", weights)
        if name == "one":
            size = weights.path.stat().st_size
            assert _check(graph, tmp_path / "one.onnx") < 1e-4
    assert weights.path.stat().st_size == size > 10_000  # each content stands there once
    content = (tmp_path / "one.onnx").read_bytes()
    assert b".py" not in content and b"mask_latents" in content  # nor does it say whose files

    # what answers otherwise is refused
    damaged = np.fromfile(weights.path, np.float32)
    (damaged * 1.1).tofile(weights.path)
    with pytest.raises(ValueError, match=r"one.onnx: its answer differs from torch's"):
        _check(graph, tmp_path / "one.onnx")


@torch.no_grad()
def test_batch_and_side_are_free_in_what_is_traced(small_pipe):
    from diffews.tools.export import _describe, _graphs, _trace

    pipe = small_pipe()
    graphs = _graphs(pipe, 32, 4)
    for name, run in (("encoder", pipe.encode_images), ("decoder", None)):
        program = _trace(graphs[name])
        shape = _describe(graphs[name], program)["inputs"][0]["shape"]
        assert shape[0] == "batch" and "side" in str(shape[2]) and shape[2] == shape[3]
        for batch, side in ((1, 32), (3, 48)) if run else ():
            pixels = torch.rand(batch, 3, side, side) * 2 - 1
            torch.testing.assert_close(program.module()(pixels), run(pixels))


def test_the_archive_is_of_the_small_model_and_of_its_own_hashes(small, torch_pipe, tmp_path):
    record = json.loads((small / "graphs" / "export.json").read_text())
    assert record["weights_sha256"] == torch_pipe.weights_sha256
    files = {name: hash_files([small / "graphs" / name]) for name in record["files"]}
    assert files == record["files"]
    assert {file.name for file in (small / "graphs").iterdir()} == {*files, "export.json"}

    from onnx_fixtures import make_small

    make_small(tmp_path / "again")
    kept, again = (find_weights(folder).unet for folder in (small / "weights", tmp_path / "again"))
    name = "diffusion_pytorch_model.safetensors"
    assert (kept / name).read_bytes() == (again / name).read_bytes()


def test_the_record_explains_the_graphs(small, torch_pipe):
    record = json.loads((small / "graphs" / "export.json").read_text())
    assert record["scaling_factor"] == torch_pipe.vae.config.scaling_factor
    assert (record["image_size"], record["multiple"], record["threshold"]) == (32, 4, 0.25)
    graphs = record["graphs"]
    assert graphs["encoder"]["inputs"][0]["shape"] == ["batch", 3, "4*side", "4*side"]
    assert graphs["decoder"]["outputs"][0]["shape"] == ["batch", 3, "4*side", "4*side"]
    kept = {entry["name"] for entry in graphs["support"]["outputs"]}
    read = {entry["name"]: entry["shape"] for entry in graphs["query"]["inputs"][1:]}
    assert kept == set(read) and len(read) == 2 * len(torch_pipe.unet._widths)
    for layer, width in torch_pipe.unet._widths.items():
        batch, tokens, channels = read[f"{layer}.key"]
        assert batch == "batch" and tokens.startswith("tokens_") and channels == width


# ---- bad input ----


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"interaction": "qkv_fusion"}, "interaction=qkv_fusion"),
        ({"generation": "multi_step_image_to_mask"}, "generation=multi_step_image_to_mask"),
        ({"injection": "attention_mask"}, "injection=attention_mask"),
        ({"supervision": "real_foreground"}, "supervision=real_foreground"),
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_another_variant_than_the_released_is_refused(
    refused, words, own_weight, tmp_path, variant, said, kind
):
    (own_weight / "diffews.json").write_text(json.dumps({"variant": variant}))
    message = refused(*words, f"weight={own_weight}", f"format={kind}")
    assert said in message and "format=diffusers" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["format=tflite"], ["format='tflite'", "onnx"]),
        (["dtype=fp16"], ["dtype=fp16", "fp32"]),
        (["image_size=50"], ["image_size=50", "8"]),
        (["format=diffusers", "dynamic_size=true"], ["dynamic_size=", "format=onnx"]),
        (["format=diffusers", "decoder=x"], ["decoder=", "format=onnx"]),
        (["weight=none"], ["weight=none"]),
    ],
)
def test_keys_that_do_not_go_together_are_refused(refused, words, tmp_path, more, parts):
    message = refused(*words, *more)
    assert all(part in message for part in parts)
    assert not (tmp_path / "out").exists()


@needs_exporter
def test_a_small_vae_that_does_not_fit_is_refused(refused, words):
    assert "decoder=" in refused(*words, "decoder=none")


def test_a_missing_package_is_said(refused, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)  # there
    message = refused(*words)
    assert "onnx" in message and "pip install 'diffews[onnx]'" in message


def test_a_folder_that_exists_is_left_alone(refused, words, tmp_path):
    (tmp_path / "out").mkdir()
    assert f"out={tmp_path / 'out'}" in refused(*words)
    assert list((tmp_path / "out").iterdir()) == []


def test_figures_are_for_a_model_card(refused, words):
    assert "include_base=true" in refused(*words, "runs=none", "format=diffusers")


# ---- one folder that works alone ----


def test_a_card_says_what_was_recorded_and_measured_and_nothing_else():
    record = {"fold": 0, "shots": 2, "base": "/home/me/base", "config": {"benchmark": "a|b<x>"}}
    result = {"benchmark": "coco20i", "fold": 0, "shots": 1, "episodes": 1000, "miou": 71.331}
    result |= {"miou_interval": [70.0, 72.5], "fb_iou": 80.0}
    card = model_card("mine_fold0", record, [result])
    assert card.startswith("---\nlibrary_name:") and "- fold: 0 (" in card and "- shots: 2" in card
    assert "| coco20i | 0 | 1 | 1000 | 71.33 | 70.00 to 72.50 | 80.00 |" in card
    assert "/home/me" not in card and "<x>" not in card
    nothing = model_card("released", {})
    assert "Not recorded." in nothing and "No evaluation was given" in nothing


@pytest.mark.slow
def test_a_whole_folder_works_alone_and_shows_its_figures(
    run, refused, words, weight, base, finished, own_weight, tmp_path
):
    more, out = ["format=diffusers", "include_base=true", f"runs={finished}"], tmp_path / "out"
    assert run(*words, *more).code == 0
    card, result = (
        (out / "README.md").read_text(),
        json.loads((finished / "result.json").read_text()),
    )
    assert f"{result['miou']:.2f}" in card and str(tmp_path) not in card
    moved = out.rename(tmp_path / "moved")
    half, full = load_pipeline(moved), load_pipeline(weight, base)
    for name, value in full.unet.state_dict().items():
        assert torch.equal(half.unet.state_dict()[name], value.half().float())
    vae = half.vae.state_dict()
    assert all(torch.equal(vae[name], value) for name, value in full.vae.state_dict().items())

    # figures of other weights are none of these
    file = own_weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1}, file)
    assert f"runs={finished}" in refused(*words, *more, f"weight={own_weight}")


# ---- all of it ----


@pytest.mark.slow
@needs_exporter
def test_an_export_of_today_answers_as_the_archived_one(run, small, picture, square_mask, tmp_path):
    from diffews.onnx import OnnxPipeline

    made, more = tmp_path / "made", ("format=onnx", "dynamic_size=true")
    assert run("export", f"weight={small / 'weights'}", f"out={made}", *more).code == 0
    for size in (32, 48):
        outputs = []
        for folder in (small / "graphs", made):
            pipe = OnnxPipeline(folder, threads=1)
            bank = pipe.encode_support(picture(1), square_mask(), size)
            outputs.append(pipe(picture(3), bank, image_size=size).scores[0])
        assert np.abs(outputs[0] - outputs[1]).max() < 1.01 / 255


@pytest.mark.slow
@needs_exporter
def test_the_goldens_graphs_answer_as_the_golden_model(run, words, pipe, picture, square_mask):
    from diffews.onnx import OnnxPipeline

    assert run(*words, "image_size=64").code == 0
    graphs = OnnxPipeline(words[3].removeprefix("out="), threads=1)
    answers = []
    for each in (graphs, pipe):
        bank = each.encode_support([picture(1), picture(2)], [square_mask()] * 2)
        answers.append(each([picture(seed) for seed in range(10, 14)], bank, threshold=0.6))
    for one, other in zip(answers[0].masks, answers[1].masks, strict=True):
        assert (one != other).sum() <= 8 and one.any()
    with pytest.raises(ValueError, match="dynamic_size=true"):
        graphs(picture(1), bank, image_size=72)


@pytest.mark.slow
@torch.no_grad()
def test_torchs_graphs_give_the_same_bits(run, small, picture, square_mask, tmp_path):
    folder, out = shutil.copytree(small / "weights", tmp_path / "weights"), tmp_path / "out"
    assert run("export", f"weight={folder}", f"out={out}", "format=torch").code == 0
    pipe = load_pipeline(folder)
    for batch in (1, 2, 3):
        draw = torch.Generator().manual_seed(batch)
        pixels = torch.rand(batch, 3, 32, 32, generator=draw) * 2 - 1
        encoder = torch.export.load(out / "encoder.pt2").module()
        assert torch.equal(encoder(pixels), pipe.encode_images(pixels))

        masks = (torch.rand(batch, 32, 32, generator=draw) > 0.5).byte()
        bank = pipe.encode_support_pixels(pixels, masks, 1)
        white = pipe.encode_images((masks.float() * 2 - 1)[:, None].repeat(1, 3, 1, 1))
        pairs = torch.cat([encoder(pixels), white], dim=1)
        found = torch.export.load(out / "support.pt2").module()(pairs)
        tensors = [tensor for _, key, value in bank for tensor in (key, value)]
        assert all(map(torch.equal, found, tensors))

        query, decoder = (
            torch.export.load(out / f"{name}.pt2").module() for name in ("query", "decoder")
        )
        decoded = decoder(query(encoder(pixels), *tensors))
        rgb = ((decoded.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
        assert torch.equal(rgb.float() / 255, pipe.segment(pixels, bank).rgb)
