"""OnnxPipeline: what torch says, without torch; banks that both read; bad folders and keys."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffews import InputError
from diffews.images.masks import Segmentation, quantize
from diffews.images.scores import at_size
from diffews.onnx import OnnxPipeline

pytest_plugins = ("onnx_fixtures",)
FLIPS = 4  # pixels of a picture that rounding may move over the threshold
BLOCKED = ("torch", "diffusers", "transformers", "accelerate", "omegaconf", "cv2", "safetensors")


@pytest.fixture(scope="module")
def onnx(small):
    return OnnxPipeline(small / "graphs", threads=1)


@pytest.fixture
def own_graphs(small, tmp_path):
    """A copy of the graphs that a test may damage."""
    return shutil.copytree(small / "graphs", tmp_path / "graphs")


@pytest.fixture(scope="module")
def supports(picture, square_mask):
    """Two shots of one set, of different sizes."""
    return [picture(1), picture(2, 50, 40)], [square_mask(), square_mask(50, 40)]


def flips(mask, other):
    assert mask.dtype == other.dtype == bool and mask.shape == other.shape
    return int((mask != other).sum())


def assert_alike(one, other):
    """Of two outputs, the masks but for rounding, and the scores but for a step of 8 bits."""
    for mask, want, score, wanted in zip(
        one.masks, other.masks, one.scores, other.scores, strict=True
    ):
        assert flips(mask, want) <= FLIPS
        assert score.dtype == np.float32 and np.abs(score - wanted).max() < 1.01 / 255
        assert np.abs(score - wanted).mean() < 1e-4


# ---- what torch says ----


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("rule", [(0.25, "reference"), (0.7, "paper"), (0.48, "absolute")])
def test_masks_and_scores_are_those_of_torch(onnx, torch_pipe, supports, picture, size, rule):
    settings = {"image_size": size, "threshold": rule[0], "threshold_rule": rule[1]}
    queries = [picture(3), picture(4, 90, 30), np.asarray(picture(5, 20, 33))]
    outputs = [
        p(queries, p.encode_support(*supports, size), **settings) for p in (onnx, torch_pipe)
    ]
    assert_alike(*outputs)
    marked = np.concatenate([mask.ravel() for mask in outputs[0].masks])
    assert rule[0] == 0.25 or 0.02 < marked.mean() < 0.98  # a comparison that means something


def test_a_batch_and_many_sets_are_answered_as_one_by_one(onnx, supports, picture):
    images, masks = supports
    queries = [picture(seed) for seed in (6, 7, 8)]
    banks = onnx.encode_support([[image] for image in images], [[mask] for mask in masks])
    assert banks.batch == 2 and banks.shots == 1
    together = onnx(queries[:2], banks, batch=2)
    apart = [onnx(queries[row], banks[row : row + 1]) for row in range(2)]
    for row in range(2):
        assert flips(together.masks[row], apart[row].masks[0]) <= FLIPS
    one, three = (onnx(queries, banks[:1], batch=batch) for batch in (1, 3))
    assert_alike(three, one)
    with pytest.raises(InputError, match="3 queries for a bank of 2 support sets"):
        onnx(queries, banks)


def test_a_label_map_is_that_of_torch(onnx, torch_pipe, picture, square_mask):
    masks = [square_mask(), ~square_mask()]
    maps = []
    for pipe in (onnx, torch_pipe):
        banks = [pipe.encode_support(picture(i), mask) for i, mask in enumerate(masks, 10)]
        maps.append(pipe.label([picture(20), picture(21, 50, 70)], banks, threshold=0.6))
    for labels, want in zip(*maps, strict=True):
        assert labels.dtype == np.uint8 and (labels != want).sum() <= 4 * FLIPS
    assert {0, 1, 2} >= set(np.unique(maps[0][0])) and len(np.unique(maps[0][0])) > 1
    with pytest.raises(InputError, match="0 banks"):
        onnx.label(picture(20), [])


def test_the_exports_own_threshold_is_the_default(own_graphs, supports, picture):
    file = own_graphs / "export.json"
    changed = {"threshold": 0.48, "threshold_rule": "absolute"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    pipe = OnnxPipeline(own_graphs)
    bank = pipe.encode_support(*supports)
    own, asked = pipe(picture(3), bank), pipe(picture(3), bank, **changed)
    assert np.array_equal(own.masks[0], asked.masks[0]) and own.masks[0].any()
    assert flips(own.masks[0], pipe(picture(3), bank, threshold=0.1).masks[0]) > 0


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (200, 31), (63, 65)])
@pytest.mark.parametrize("rule", ["reference", "paper", "absolute"])
def test_scores_are_resized_and_held_against_the_limit_as_in_torch(shape, rule):
    decoded = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 2
    rgb = quantize(decoded).float() / 255
    (mask, score), want = at_size(rgb[0].numpy(), shape, 0.4, rule), Segmentation(rgb)
    ((wanted_mask, wanted_score),) = want.at_sizes([shape], 0.4, rule)
    assert np.abs(score - wanted_score).max() < 3e-6 and score.dtype == np.float32
    assert flips(mask, wanted_mask) <= 2 and 0.02 < mask.mean() < 0.98


def test_the_forms_of_output_are_those_of_the_pipeline(onnx, torch_pipe, supports, picture):
    plain = onnx(picture(3), bank := onnx.encode_support(*supports))
    assert plain.presence is None
    for pipe in (onnx, torch_pipe):
        masks, scores = pipe(
            picture(3),
            support_images=supports[0],
            support_masks=supports[1],
            output_type="pil",
            return_dict=False,
        )
        assert (masks[0].mode, scores[0].mode, masks[0].size) == ("L", "F", (64, 64))
        assert flips(np.asarray(masks[0]) > 0, plain.masks[0]) <= FLIPS
    with pytest.raises(InputError, match="output_type='pt' is not one of np, pil"):
        onnx(picture(3), bank, output_type="pt")
    for call in (lambda: onnx(picture(3), bank, min_presence=0.5),
                 lambda: onnx.label(picture(3), [bank], min_presence=0.5)):  # fmt: skip
        with pytest.raises(InputError, match="min_presence=0.5.*no presence head"):
            call()


# ---- banks ----


def test_each_reads_the_others_bank(onnx, torch_pipe, supports, picture, tmp_path):
    here, there = tmp_path / "onnx.safetensors", tmp_path / "torch.safetensors"
    bank = onnx.encode_support(*supports)
    onnx.save_bank(bank, here)
    torch_pipe.save_bank(torch_pipe.encode_support(*supports), there)
    want = torch_pipe(picture(3), torch_pipe.load_bank(there), threshold=0.55)
    assert_alike(torch_pipe(picture(3), torch_pipe.load_bank(here), threshold=0.55), want)
    assert_alike(onnx(picture(3), onnx.load_bank(there), threshold=0.55), want)

    # and its own to the bit
    again = onnx.load_bank(here)
    assert again.shots == bank.shots == 2 and again.tensors.keys() == bank.tensors.keys()
    assert all(np.array_equal(again.tensors[name], bank.tensors[name]) for name in bank.tensors)


def test_what_is_no_bank_or_of_others_is_refused(onnx, pipe, supports, tmp_path):
    from safetensors.numpy import load_file, save_file

    from diffews import SupportBank

    file = tmp_path / "bank.safetensors"
    bank = onnx.encode_support(*supports)
    onnx.save_bank(bank, file)
    tensors = load_file(file)

    def refuses(words, **metadata):
        save_file(tensors, file, {"shots": "2", "weights": "", **metadata})
        with pytest.raises(InputError, match=words):
            onnx.load_bank(file)

    refuses("other weights", weights="f" * 64)
    refuses("not those of 7 shots", shots="7")
    refuses("is not a support bank", shots="two")
    name = next(iter(tensors))
    tensors[name][0, 0, 0] = np.nan
    refuses("not finite")
    del tensors[name]
    refuses("not those of 2 shots")

    pipe.encode_support(supports[0][0], supports[1][0]).save(file)  # of another network
    with pytest.raises(InputError, match="layers that are not those of"):
        onnx.load_bank(file)
    assert isinstance(SupportBank.load(file), SupportBank)
    for content in (b"", b"no bank"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"bank.safetensors is not a support bank"):
            onnx.load_bank(file)
    with pytest.raises(InputError, match="none.safetensors"):
        onnx.load_bank(tmp_path / "none.safetensors")


# ---- without torch ----

SCRIPT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
{body}
found = [name for name in sys.modules if name.partition(".")[0] in {blocked}]
assert not found, found
"""


def run_without(blocked, body):
    """Runs Python code in a process in which some packages cannot be imported."""
    script = SCRIPT.format(blocked=blocked, body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_with_numpy_pillow_and_onnxruntime_alone(
    small, torch_pipe, picture, square_mask, tmp_path
):
    picture(1).save(tmp_path / "support.png")
    Image.fromarray(square_mask()).save(tmp_path / "mask.png")
    picture(3, 70, 50).save(tmp_path / "query.png")
    body = f"""
import numpy as np
from diffews.onnx import OnnxPipeline
pipe = OnnxPipeline({str(small / "graphs")!r}, threads=1)
bank = pipe.encode_support({str(tmp_path / "support.png")!r}, {str(tmp_path / "mask.png")!r})
out = pipe({str(tmp_path / "query.png")!r}, bank, threshold=0.55)
np.savez({str(tmp_path / "out.npz")!r}, mask=out.masks[0], labels=pipe.label(
    {str(tmp_path / "query.png")!r}, [bank], threshold=0.55)[0])
"""
    run_without(BLOCKED, body)
    found, files = np.load(tmp_path / "out.npz"), [tmp_path / "support.png", tmp_path / "mask.png"]
    want = torch_pipe(
        str(tmp_path / "query.png"), torch_pipe.encode_support(*map(str, files)), threshold=0.55
    )
    assert flips(found["mask"], want.masks[0]) <= FLIPS and found["mask"].any()
    assert np.array_equal(found["labels"], found["mask"].astype(np.uint8))


@pytest.fixture
def words(small, picture, square_mask, tmp_path):
    """`segment` with the graphs as its weights; a word said again wins."""
    picture(1, 80, 60).save(tmp_path / "support.png")
    Image.fromarray(square_mask(80, 60)).save(tmp_path / "mask.png")
    picture(2, 90, 50).save(tmp_path / "query.png")
    words = f"segment weight={small / 'graphs'} threads=1 threshold=0.55 out={tmp_path / 'out'}"
    words += f" support={tmp_path / 'support.png'} mask={tmp_path / 'mask.png'}"
    return [*words.split(), f"query={tmp_path / 'query.png'}"]


def test_segment_finds_the_graphs_and_needs_no_torch(small, words, run, tmp_path):
    said = run_without(
        ("torch", "diffusers", "transformers"),
        f"from diffews.cli.main import main\nassert main({[*words, 'batch=auto']!r}) == 0",
    )
    assert "wrote 1 mask(s)" in said
    assert run(*words, f"weight={small / 'weights'}", f"out={tmp_path / 'torch'}").code == 0
    masks = [np.asarray(Image.open(tmp_path / o / "query_mask.png")) > 0 for o in ("out", "torch")]
    assert flips(*masks) <= FLIPS and masks[0].any()
    assert "done already" in run(*words).err


def test_segment_takes_banks_and_classes(small, words, run, tmp_path):
    bank = f"bank={tmp_path / 'a.safetensors'}"
    assert run(*words, f"save_bank={tmp_path / 'a.safetensors'}").code == 0
    read = [word for word in words if not word.startswith(("support=", "mask="))]
    assert run(*read, bank, f"out={tmp_path / 'banked'}", "fast=true").code == 0
    places = [tmp_path / out / "query_mask.png" for out in ("out", "banked")]
    assert np.array_equal(*(np.asarray(Image.open(place)) for place in places))

    twice = [f"{key}={tmp_path / file},{tmp_path / file}" for key, file in
             (("support", "support.png"), ("mask", "mask.png"))]  # fmt: skip
    assert run(*words, *twice, "classes=owl,newt", "image_size=48").code == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "query_labels.png"))
    assert labels.shape == (50, 90) and set(np.unique(labels)) == {0, 1}  # newt ties with owl


# ---- bad input ----


def change(folder, **values):
    file = folder / "export.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, **values}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "export.json").write_text("{"), "export.json cannot be read"),
        (lambda f: (f / "export.json").write_text("[]"), "export.json holds list"),
        (lambda f: change(f, format="torch"), "format is torch, not onnx"),
        (lambda f: change(f, version=9), "version 9 is not 1"),
        (lambda f: change(f, image_size="big"), "export.json is broken (image_size is big)"),
        (lambda f: change(f, image_size=-4), "export.json is broken (image_size is -4)"),
        (lambda f: change(f, threshold=2.0), "export.json is broken (threshold=2.0"),
        (lambda f: change(f, graphs={}), "export.json is broken ('encoder')"),
        (lambda f: change(f, graphs=None), "export.json is broken"),
        (lambda f: change(f, files={}), "export.json is broken"),
        (lambda f: change(f, files={"../encoder.onnx": ""}), "export.json is broken"),
        (lambda f: (f / "weights.data").unlink(), "weights.data, which is not there"),
        (lambda f: (f / "query.onnx").write_bytes(b"x"), "query.onnx is not the file"),
        (lambda f: (f / "weights.data").write_bytes(b"x"), "weights.data is not the file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    refused, words, own_graphs, tmp_path, damage, said
):
    damage(own_graphs)
    message = refused(*words, f"weight={own_graphs}")
    assert said in message and str(own_graphs) in message
    assert not (tmp_path / "out").exists()


def test_a_graph_that_onnxruntime_does_not_take_is_refused(own_graphs, supports):
    (own_graphs / "encoder.onnx").write_bytes(b"no graph")
    pipe = OnnxPipeline(own_graphs, check_files=False)
    with pytest.raises(InputError, match="encoder.onnx does not load"):
        pipe.encode_support(*supports)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("image_size=50", ["image_size=50", "multiple of 4"]),
        ("dtype=bf16", ["dtype=", "export.json"]),
        ("base=none", ["base=", "export.json"]),
        ("compile=true", ["compile=", "export.json"]),
        ("device=tpu", ["device=tpu", "CPUExecutionProvider"]),
        ("device=cpu:x", ["device=cpu:x"]),
        ("bank=none.safetensors", ["bank="]),
    ],
)
def test_a_setting_that_graphs_do_not_take_is_refused(refused, words, tmp_path, word, parts):
    message = refused(*words, word)
    assert all(part in message for part in parts)
    assert not (tmp_path / "out").exists()


def test_graphs_of_one_size_take_no_other(own_graphs):
    change(own_graphs, multiple=None, dynamic_size=False)
    pipe = OnnxPipeline(own_graphs)
    assert pipe.check_size(None) == pipe.check_size(32) == 32
    with pytest.raises(InputError, match="image_size=48.*dynamic_size=true"):
        pipe.check_size(48)


def test_a_missing_onnxruntime_is_said(refused, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refused(*words)
    assert "onnxruntime" in message and "diffews[onnx]" in message


def test_only_segment_takes_graphs(refused, small, golden_words):
    message = refused(*golden_words, f"weight={small / 'graphs'}")
    assert "export.json" in message and "segment" in message


def test_what_is_not_finite_is_refused(onnx, torch_pipe, picture, supports):
    bank = onnx.encode_support(*supports)
    name = next(iter(bank.tensors))
    bank.tensors[name][:] = np.inf
    with pytest.raises(InputError, match="query 0: the decoded picture"):
        onnx(picture(3), bank)


def test_a_call_needs_a_bank_or_supports(onnx, picture, supports):
    with pytest.raises(InputError, match="either a bank or support_images"):
        onnx(picture(3))
    with pytest.raises(InputError, match="support_images without support_masks"):
        onnx(picture(3), support_images=supports[0])
    direct = onnx(picture(3), support_images=supports[0], support_masks=supports[1])
    assert np.array_equal(
        direct.scores[0], onnx(picture(3), onnx.encode_support(*supports)).scores[0]
    )
