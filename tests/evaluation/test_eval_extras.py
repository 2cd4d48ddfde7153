"""What an evaluation can count beside its mIoU, and what makes it faster.

Each against a plain run or by hand.
"""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from eval_runs import lines, mask, result
from safetensors.torch import load_file, save_file
from training_runs import make_few_shapes

from diffews.cli.keys import CHECKOUT
from diffews.cli.main import main
from diffews.cli.settings import EvalConfig
from diffews.data.registry import load_benchmark
from diffews.evaluation.groups import read_group, segment_group
from diffews.evaluation.metrics import Scores, intersection_and_union
from diffews.images.paint import to_pixels
from diffews.runtime.device import CPU_PIXELS, all_cores
from diffews.runtime.loading import settle_fast

COUNT = 5  # episodes


@pytest.fixture
def evaluate(run, golden_words, tmp_path):
    """evaluate(name, *words): the golden evaluation of a few episodes -> its folder."""

    def call(name, *words):
        outcome = run(*golden_words, f"episodes={COUNT}", f"out={tmp_path / name}", *words)
        assert outcome.code == 0, outcome
        return tmp_path / name

    return call


@pytest.fixture(scope="module")
def dataset(coco):
    return load_benchmark("coco20i", coco, 0, shots=1, image_size=64)


def miou(records, counts, class_ids):
    scores = Scores(class_ids)
    for record, (inter, union) in zip(records, counts, strict=True):
        scores.add(record["class_id"], inter, union)
    return scores.miou()


# ---- more scores ----


def test_a_sweep_counts_what_runs_at_those_thresholds_count(evaluate, finished):
    out = evaluate("sweep", "relative_thresholds=0.3,0.6", "absolute_thresholds=0.4")
    swept_miou = result(out)["miou_by_threshold"]
    assert list(swept_miou) == ["relative 0.3", "relative 0.6", "absolute 0.4"]
    plain = lines(finished)[:COUNT]
    assert [{k: v for k, v in record.items() if k != "sweep"} for record in lines(out)] == plain
    for name, words in {
        "relative 0.3": ["threshold=0.3"],
        "relative 0.6": ["threshold=0.6"],
        "absolute 0.4": ["threshold=0.4", "threshold_rule=absolute"],
    }.items():
        alone = evaluate(name, *words)
        assert swept_miou[name] == pytest.approx(result(alone)["miou"])
        for swept, record in zip(lines(out), lines(alone), strict=True):
            assert swept["sweep"][name] == {part: record[part] for part in ("inter", "union")}


def test_a_relative_sweep_follows_the_rule_of_the_run(evaluate):
    out = evaluate("sweep", "threshold_rule=paper", "relative_thresholds=0.5")
    alone = evaluate("alone", "threshold_rule=paper", "threshold=0.5")
    assert result(out)["miou_by_threshold"]["relative 0.5"] == pytest.approx(result(alone)["miou"])


@pytest.fixture(scope="module")
def extra(golden_words, dataset, tmp_path_factory):
    """A finished evaluation with the extra scores and its masks; never written to."""
    out = tmp_path_factory.mktemp("extra") / "out"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        words = [f"episodes={COUNT}", "extra_metrics=true", "save_masks=true", f"out={out}"]
        assert main([*golden_words, *words]) == 0
    return out


def test_own_size_is_that_of_the_pipelines_masks(extra, pipe, dataset):
    counts = []
    for index in range(COUNT):
        episode = dataset.episodes[index]
        query = dataset.benchmark.decode(episode.query, episode.class_id)
        support = dataset.benchmark.decode(episode.supports[0], episode.class_id)
        found = pipe(query.image, support_images=support.image, support_masks=support.mask).masks[0]
        assert found.shape == query.mask.shape
        counts.append(intersection_and_union(found, query.mask))
    assert {dataset.decode_query(index).mask.shape for index in range(COUNT)} != {(64, 64)}
    records = lines(extra)
    for record, (inter, union) in zip(records, counts, strict=True):
        got = [record["own_size"]["inter"], record["own_size"]["union"]]
        assert np.abs(np.subtract(got, [inter, union])).max() <= 4
    want = miou(records, counts, dataset.class_ids)
    assert result(extra)["miou_own_size"] == pytest.approx(want, abs=0.02)
    assert result(extra)["miou_own_size"] != pytest.approx(result(extra)["miou"], abs=1e-9)


def inner(binary, distance):
    """The pixels of a mask whose whole square lies in it; outside the picture is none."""
    padded = F.pad(torch.from_numpy(binary).float()[None, None], (distance,) * 4)
    return (-F.max_pool2d(-padded, 2 * distance + 1, stride=1))[0, 0].numpy() > 0


def test_boundary_miou_is_that_of_the_rims(extra, dataset):
    counts, distance = [], round(0.02 * 64 * 2**0.5)
    for index in range(COUNT):
        rims = [
            m & ~inner(m, distance) for m in (mask(extra, index), dataset[index].query_mask > 0)
        ]
        counts.append(([0, int((rims[0] & rims[1]).sum())], [0, int((rims[0] | rims[1]).sum())]))
    want = miou(lines(extra), counts, dataset.class_ids)
    assert result(extra)["boundary_miou"] == pytest.approx(want)


def test_mean_episode_iou_is_the_mean_over_episodes(extra):
    want = np.mean([100 * r["inter"][1] / max(r["union"][1], 1) for r in lines(extra)])
    assert result(extra)["mean_episode_iou"] == pytest.approx(want)


def test_sampling_keys_and_values_is_seeded(evaluate):
    plain, all_kept = evaluate("plain", "shots=2"), evaluate("all", "shots=2", "kv_sampling=2")
    assert (plain / "episodes.jsonl").read_bytes() == (all_kept / "episodes.jsonl").read_bytes()
    one, again = (evaluate(name, "shots=2", "kv_sampling=1") for name in ("one", "again"))
    assert (one / "episodes.jsonl").read_bytes() == (again / "episodes.jsonl").read_bytes()
    assert (one / "episodes.jsonl").read_bytes() != (plain / "episodes.jsonl").read_bytes()


def test_flips_are_the_mean_of_an_episode_and_its_mirror_image(evaluate, pipe, dataset):
    both = evaluate("both", "flips=true", "episodes=2", "save_masks=true")
    for index in range(2):
        episode, scores = dataset[index], []
        for step in (1, -1):
            supports = np.ascontiguousarray(episode.support_images[..., ::step])
            marks = np.ascontiguousarray(episode.support_masks[..., ::step])
            query = np.ascontiguousarray(episode.query_image[..., ::step])[None]
            bank = pipe.encode_support_pixels(torch.tensor(supports), torch.tensor(marks), 1)
            scores.append(pipe.segment(torch.tensor(query), bank).rgb[0].numpy()[..., ::step])
        mean = (scores[0] + scores[1]) / 2
        assert (mask(both, index) == (mean.mean(0) > 0.25 * mean.max())).all()


# ---- faster ----


def test_batch_auto_on_the_cpu_is_recorded_and_kept(evaluate):
    documented = CPU_PIXELS // 64**2
    out = evaluate("auto", "batch=auto", "episodes=12")
    assert result(out)["batch"] == documented == 8 and result(out)["config"]["batch"] == 8
    same = evaluate("eight", "batch=8", "episodes=12")
    assert (out / "episodes.jsonl").read_bytes() == (same / "episodes.jsonl").read_bytes()
    few = evaluate("few", "batch=auto", "episodes=3")  # as many as there are
    evaluate("few", "batch=auto", "episodes=6")
    assert result(few)["batch"] == 3 and result(few)["episodes"] == 6


def test_fast_takes_all_cores_of_a_cpu_unless_threads_are_given():
    cpu, cores = torch.device("cpu"), all_cores()
    assert settle_fast(EvalConfig(fast=True), cpu).threads == cores >= 1
    assert settle_fast(EvalConfig(fast=True, threads=3), cpu).threads == 3
    assert settle_fast(EvalConfig(), cpu) == EvalConfig()


def test_fast_is_its_keys(evaluate, monkeypatch):
    # busy cores: two threads are slower
    monkeypatch.setattr("diffews.runtime.loading.all_cores", lambda: 1)
    fast = evaluate("fast", "fast=true")
    spelled = evaluate("spelled", "channels_last=true", "batch=auto", "tf32=false")
    assert (fast / "episodes.jsonl").read_bytes() == (spelled / "episodes.jsonl").read_bytes()
    identities = [json.loads((out / "run.json").read_text()) for out in (fast, spelled)]
    assert identities[0] == identities[1]
    assert result(fast)["config"]["fast"] is False and result(fast)["channels_last"] is True


@pytest.mark.parametrize(
    ("words", "share"),
    [(["channels_last=true", "batch=8"], 0.995), (["low_memory=true"], 0.999)],
    ids=str,
)
def test_what_is_faster_or_smaller_agrees_with_the_exact_path(evaluate, extra, words, share):
    out = evaluate("out", "save_masks=true", *words)
    agree = np.mean([(mask(out, index) == mask(extra, index)).mean() for index in range(COUNT)])
    assert agree >= share
    assert result(out)[words[0].split("=")[0]] is True


def test_a_picture_that_comes_again_in_a_group_is_encoded_once(pipe, dataset):
    indices = [0, 1, 0, 2, 1]
    group, seen = read_group(dataset, indices), []
    hook = pipe.vae.encoder.register_forward_hook(
        lambda _, pictures, __: seen.append(len(pictures[0]))
    )
    try:
        together = segment_group(pipe, group, 1).masks(0.25, "reference")
    finally:
        hook.remove()
    episodes = [dataset.episodes[index] for index in (0, 1, 2)]
    pictures = {sample for e in episodes for sample in (e.query, *e.supports)}
    masks = {(support, e.class_id) for e in episodes for support in e.supports}
    assert seen == [len(pictures) + len(masks)]
    for row, index in enumerate(indices):
        alone = segment_group(pipe, read_group(dataset, [index]), 1).masks(0.25, "reference")
        assert (together[row] == alone[0]).float().mean() >= 0.999


def test_numbers_of_distinct_pictures_tell_pictures_apart(dataset):
    group = read_group(dataset, list(range(4)))
    pictures = torch.cat([group.query_rgb, group.support_rgb]).flatten(1)
    for i in range(len(pictures)):
        for j in range(i):
            same = bool(group.distinct[i] == group.distinct[j])
            assert same == torch.equal(pictures[i], pictures[j])


@torch.no_grad()
def test_text_keys_change_no_bit(pipe, dataset):
    group = read_group(dataset, [0])
    got, step, words = segment_group(pipe, group, 1).rgb, torch.tensor(1), pipe.text["eval"]
    drawn = (group.support_masks.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    latents = torch.cat(
        [pipe.encode_images(to_pixels(group.support_rgb)), pipe.encode_images(drawn)], dim=1
    )
    bank = pipe.unet.encode_support(latents, step, words, 1)
    query = pipe.encode_images(to_pixels(group.query_rgb))
    decoded = pipe.vae.decode(
        pipe.unet.segment(query, step, words, bank) / pipe.vae.config.scaling_factor
    ).sample
    quantized = ((decoded.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    assert torch.equal(got, quantized.float() / 255)


# ---- another decoder ----


@pytest.fixture
def tiny_words(run, tmp_path):
    """The shipped tiny weights on two pictures of each shape; -> words of an evaluation."""
    data = make_few_shapes(tmp_path / "shapes")
    return ["eval", f"data={data}", "fold=0", "episodes=6", "workers=0", "save_masks=true"]


def test_the_shipped_decoder_stands_in_and_belongs_to_the_run(run, refused, tiny_words, tmp_path):
    shipped = CHECKOUT / "weight" / "tiny" / "decoder"
    plain, small = tmp_path / "plain", tmp_path / "small"
    assert run(*tiny_words, f"out={plain}").code == 0
    assert run(*tiny_words, f"out={small}", f"decoder={shipped}").code == 0
    agree = np.mean([(mask(plain, index) == mask(small, index)).mean() for index in range(6)])
    assert agree > 0.95
    assert result(plain)["decoder_sha256"] is None and len(result(small)["decoder_sha256"]) == 64

    other = shutil.copytree(shipped, tmp_path / "other")
    tensors = load_file(other / "diffusion_pytorch_model.safetensors")
    changed = {name: tensor + 0.001 for name, tensor in tensors.items()}
    save_file(changed, other / "diffusion_pytorch_model.safetensors")
    for words in ([f"decoder={other}"], []):
        message = refused(*tiny_words, f"out={small}", *words)
        assert str(small) in message and "decoder_sha256: " in message
    copy = shutil.copytree(shipped, tmp_path / "copy")
    assert run(*tiny_words, f"out={small}", f"decoder={copy}").code == 0


def test_a_small_encoder_stands_in(run, tiny_words, tmp_path):
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    torch.manual_seed(0)
    AutoencoderTiny(**blocks, **widths).save_pretrained(tmp_path / "encoder")
    out = tmp_path / "out"
    assert run(*tiny_words, f"out={out}", f"encoder={tmp_path / 'encoder'}").code == 0
    assert len(result(out)["encoder_sha256"]) == 64


def test_missing_parts_are_named(refused, golden_words, tmp_path):
    for part in ("encoder", "decoder"):
        message = refused(
            *golden_words, "episodes=1", f"out={tmp_path / 'out'}", f"{part}={tmp_path / 'none'}"
        )
        assert str(tmp_path / "none") in message
    assert not (tmp_path / "out").exists()


def test_keys_of_several_steps_are_checked(refused, golden_words, tmp_path):
    words = [*golden_words, f"out={tmp_path / 'out'}", "episodes=1"]
    assert "denoising_steps=1000" in refused(*words, "denoising_steps=1000")
    assert "ensemble=" in refused(*words, "ensemble=2")
    assert not (tmp_path / "out").exists()
