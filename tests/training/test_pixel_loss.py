"""The loss on decoded masks, weak masks, second stages: off by default, exact, refused early."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_runs import lines, result
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import batches_of, differing, log_lines, weights

from diffews import DiffewsPipeline, load_pipeline
from diffews.cli.keys import load
from diffews.cli.settings import EvalConfig
from diffews.data import load_benchmark
from diffews.evaluation.seen import seen_classes
from diffews.models.find import find_weights
from diffews.models.vae import decode_latents
from diffews.models.weights import load_vae
from diffews.tools.distill import make_small_vae
from diffews.training.pixel_loss import PixelLoss, mask_loss
from diffews.training.step import latent_loss

pytest_plugins = ("training_fixtures",)

PLUS = ["pixel_loss=1", "weak_masks=0.6", "sample_posterior=false"]


def record(out):
    return json.loads((out / "diffews.json").read_text())


def losses(out):
    return [line.loss for line in log_lines(out)]


# ---- the formula ----


def test_the_loss_on_a_mask_is_that_of_the_documentation():
    """Held against the formula written out, pixel by pixel."""
    rgb = torch.empty(2, 3, 2, 2).uniform_(-1.3, 1.3, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    entropies, dice = [], []
    for image, mask in zip(rgb.tolist(), truth.tolist(), strict=True):
        common = sizes = 0.0
        for y in range(2):
            for x in range(2):
                p = (sum(channel[y][x] for channel in image) / 3 + 1) / 2
                found = 1 / (1 + math.exp(-8 * (p - 0.5)))
                entropies.append(-math.log(found if mask[y][x] else 1 - found))
                common += found * mask[y][x]
                sizes += found + mask[y][x]
        dice.append(1 - (2 * common + 1) / (sizes + 1))
    want = sum(entropies) / 8 + sum(dice) / 2
    assert mask_loss(rgb, truth).item() == pytest.approx(want, rel=1e-5)


def test_what_is_wrong_and_sure_of_it_keeps_a_gradient():
    rgb = torch.full((1, 3, 8, 8), 3.0, requires_grad=True)  # far beyond white, on a black mask
    mask_loss(rgb, torch.zeros(1, 8, 8)).backward()
    assert (rgb.grad > 1e-3).all()


def test_a_better_mask_costs_less():
    truth = (torch.arange(64).reshape(1, 8, 8) % 8 < 4).float()
    painted = (truth * 2 - 1)[:, None].repeat(1, 3, 1, 1)
    costs = [mask_loss(painted * share, truth).item() for share in (1.0, 0.5, 0.0, -0.5, -1.0)]
    assert costs == sorted(costs) and costs[0] < 0.1 and costs[-1] > 3


def test_the_step_adds_it_to_the_latent_loss(trainer):
    run = trainer("pixel_loss=0.25", "batch=2")
    loss = run.module.loss
    assert isinstance(loss, PixelLoss) and loss.decoder is run.vae
    batch = batches_of(run)[0]
    step = run.step_input(batch)
    assert torch.equal(step.truth * 255, batch.target[:, 0])  # white on black
    predicted = torch.randn(step.goal.shape, generator=torch.Generator().manual_seed(1))
    rgb = decode_latents(run.vae, predicted)
    want = latent_loss(predicted, step) + 0.25 * mask_loss(rgb, step.truth.float())
    assert loss(predicted, step).item() == pytest.approx(want.item(), rel=1e-6)

    # the decoder stays as it is, and no part of what trains
    run.optimizer_step(iter([batch]))
    assert all(weight.grad is None for weight in run.vae.parameters())
    assert not any("decoder" in name for name in run.module.state_dict())


# ---- runs ----


def test_it_begins_where_it_is_asked_to(trainer):
    run = trainer("pixel_loss=1", "pixel_from=2")
    batch = batches_of(run)[0]
    predicted = torch.zeros(2, 4, 8, 8)
    for run.step in range(4):  # so many are done
        step = run.step_input(batch)
        assert (step.truth is None) == (run.step < 2)
        cost, latents = run.module.loss(predicted, step), latent_loss(predicted, step)
        assert (cost > latents + 0.1) if run.step >= 2 else cost == latents
        assert run.record()["threshold"] == (0.25 if run.step <= 2 else 0.5)
    assert trainer().module.loss is latent_loss and trainer().record()["threshold"] == 0.25


def test_stopping_and_going_on_is_a_straight_run_to_the_bit(train, tmp_path):
    words = [*PLUS, "pixel_from=1", "accumulate=2", "steps=2"]
    straight = train(*words, out=tmp_path / "straight")
    train(*words, "stop_at=1", out=tmp_path / "parts")
    assert record(tmp_path / "parts" / "checkpoint-1")["threshold"] == 0.25  # it has not begun
    parts = train(*words, "resume=latest", out=tmp_path / "parts")
    assert losses(parts) == losses(straight)
    assert differing(weights(parts), weights(straight)) == []


@pytest.mark.parametrize(
    "injection",
    [
        "concatenation",
        pytest.param("multiplication_rgb", marks=pytest.mark.slow),  # painted on the picture
        pytest.param("attention_mask", marks=pytest.mark.slow),  # the mask itself
    ],
)
def test_a_latent_cache_gives_the_same_to_the_bit(trainer, tmp_path, injection):
    words = [*PLUS, f"injection={injection}", "batch=6"]
    plain, cached = trainer(*words), trainer(*words, f"cache={tmp_path / 'cache'}")
    for step in range(2):  # some of these episodes have weak masks, others do not
        from_disk = plain.batch_reader(plain.episode_reader()).read(step)
        from_cache = cached.batch_reader(cached.episode_reader()).read(step)
        found = [run.step_input(b) for run, b in ((plain, from_disk), (cached, from_cache))]
        for name in ("query", "goal", "masks", "truth"):
            one, other = (getattr(each, name) for each in found)
            assert one is other is None or torch.equal(one, other), name
        assert all(map(torch.equal, *(each.supports for each in found)))


def test_checkpointing_changes_nothing(trainer):
    found = []
    for word in ("true", "false"):
        run = trainer("pixel_loss=1", f"checkpointing={word}")
        assert run.module.loss.decoder.is_gradient_checkpointing == (word == "true")
        found.append(run.optimizer_step(iter(batches_of(run)[:1])))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# ---- a small decoder ----


@pytest.fixture(scope="module")
def small_decoder(tiny_base, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small") / "decoder"
    make_small_vae(load_vae(tiny_base, torch.float32), 4, [1, 0, 0]).save_pretrained(folder)
    return folder


def test_a_small_decoder_takes_the_vaes_place(trainer, small_decoder, tmp_path):
    run = trainer("pixel_loss=1", f"decoder={small_decoder}")
    assert type(run.module.loss.decoder).__name__ == "AutoencoderTiny"
    assert not any(weight.requires_grad for weight in run.module.loss.decoder.parameters())
    assert not run.module.loss.decoder.training

    # a run that goes on has the same one
    other = shutil.copytree(small_decoder, tmp_path / "other")
    file = other / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    again, changed = (
        trainer("pixel_loss=1", f"decoder={folder}").identity["decoder_sha256"]
        for folder in (small_decoder, other)
    )
    assert run.identity["decoder_sha256"] == again != changed


# ---- a second stage ----


def test_a_second_stage_starts_from_the_weights_it_is_given(trainer, trained):
    start = trainer(f"init={trained}", "seed=9")
    assert differing(start.unet.state_dict(), weights(trained)) == []
    assert all(weight.requires_grad for weight in start.parameters) and start.unet.training
    assert start.identity["start_sha256"] != trainer("seed=9").identity["start_sha256"]
    lineage = start.record()["init"]
    assert (lineage["benchmark"], lineage["fold"], lineage["config"]["seed"]) == ("coco20i", 0, 42)


@pytest.mark.slow
def test_a_second_stage_goes_on_from_its_own_checkpoint(train, trained, tmp_path):
    words = [f"init={trained}", *PLUS, "steps=2"]
    straight = train(*words, out=tmp_path / "straight")
    train(*words, "stop_at=1", out=tmp_path / "parts")
    parts = train(*words, "resume=latest", out=tmp_path / "parts")
    assert differing(weights(parts), weights(straight)) == []
    assert differing(weights(parts), weights(trained)) != []


def test_weights_of_another_variant_are_no_start(refused, trained, train_words, tmp_path):
    first = shutil.copytree(trained, tmp_path / "first")
    made = record(first)
    made["variant"]["injection"] = "addition"
    (first / "diffews.json").write_text(json.dumps({**made, "base": train_words[1][5:]}))
    message = refused(*train_words, f"init={first}", f"out={tmp_path / 'out'}")
    assert "injection=addition" in message and f"init={first}" in message
    assert not (tmp_path / "out").exists()


def test_what_the_first_stage_saw_is_not_novel_to_the_second(
    train, run, trained, few_shapes, tiny_base, tmp_path
):
    """Fold 1's novel classes were trained on by a first stage of fold 0, and evaluation says so."""
    out = train(f"init={trained}", "steps=1", "fold=1", out=tmp_path / "second")
    words = ["eval", f"weight={out}", f"base={tiny_base}", f"data={few_shapes}", "episodes=1"]
    outcome = run(*words, "workers=0", f"out={tmp_path / 'eval'}")
    assert outcome.code == 0 and "was trained on 20 of the 20 novel classes" in outcome.err

    # the same first stage under a second one of its own fold, and one that says nothing
    dataset, config = load_benchmark("coco20i", few_shapes, 0), load(EvalConfig, ["fold=0"])
    source, made = find_weights(out, tiny_base), record(out)
    for before, want in ((made["init"], []), ({}, None)):
        source = replace(source, record={**made, "fold": 0, "init": before})
        assert seen_classes(source, config, dataset) == want


# ---- the threshold that weights were trained for ----


@pytest.fixture
def strict_weight(own_weight, base):
    """The golden weights, as if trained for another threshold."""
    (own_weight / "diffews.json").write_text(json.dumps({"threshold": 0.6, "base": str(base)}))
    return own_weight


def test_evaluation_takes_the_recorded_threshold(strict_weight, golden_words, run, tmp_path):
    words = [f"weight={strict_weight}", "episodes=3", "relative_thresholds=0.25,0.6"]
    assert run(*golden_words, *words, f"out={tmp_path / 'out'}").code == 0
    for found in lines(tmp_path / "out"):
        counts = {name: found[name] for name in ("inter", "union")}
        assert counts == found["sweep"]["relative 0.6"] != found["sweep"]["relative 0.25"]
    written = result(tmp_path / "out")
    assert written["config"]["threshold"] == written["threshold"] == 0.6


def test_the_pipeline_and_segment_take_it_too(
    strict_weight, base, run, picture, square_mask, tmp_path
):
    pipe = load_pipeline(strict_weight, base)
    bank = pipe.encode_support(picture(0), square_mask(), 64)
    own, same, other = (
        pipe(picture(1), bank, image_size=64, **given).masks[0]
        for given in ({}, {"threshold": 0.6}, {"threshold": 0.25})
    )
    assert np.array_equal(own, same) and not np.array_equal(own, other)
    pipe.save_pretrained(tmp_path / "saved")
    assert find_weights(tmp_path / "saved").threshold() == 0.6
    assert DiffewsPipeline.from_pretrained(tmp_path / "saved").config.threshold == 0.6

    for number in (0, 1):
        picture(number).save(tmp_path / f"{number}.png")
    Image.fromarray(square_mask()).save(tmp_path / "mask.png")
    words = ["support=0.png", "mask=mask.png", "query=1.png", "out=out"]
    words = [word.replace("=", f"={tmp_path}/") for word in words]
    words += [f"weight={strict_weight}", f"base={base}", "image_size=64", "threads=1"]
    assert run("segment", *words).code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "1_mask.png")) > 0, own)


def test_a_given_threshold_wins(own_weight, base):
    source = find_weights(own_weight, base)
    assert (source.threshold(), source.threshold(0.4)) == (0.25, 0.4)
    source = replace(source, record={"threshold": 0.5})
    assert (source.threshold(), source.threshold(0.4), source.threshold(0)) == (0.5, 0.4, 0)


@pytest.mark.parametrize("wrong", [1.0, -0.1, "0.5", None, True, [0.5], float("nan")])
def test_a_recorded_threshold_that_cannot_be_is_refused(own_weight, refused, golden_words, wrong):
    (own_weight / "diffews.json").write_text(json.dumps({"threshold": wrong}))
    message = refused(*golden_words, f"weight={own_weight}", "episodes=1")
    assert f"{own_weight / 'diffews.json'}: threshold is " in message


# ---- weak prompts at test time ----


def test_a_prompt_changes_what_the_support_says_and_is_recorded(
    golden_words, run, refused, tmp_path
):
    words = [*golden_words, "episodes=2", "batch=2"]
    found = {}
    for prompt in ("box", "point"):
        out = tmp_path / prompt
        assert run(*words, f"prompt={prompt}", f"out={out}").code == 0
        assert result(out)["prompt"] == result(out)["config"]["prompt"] == prompt
        found[prompt] = [line["inter"] for line in lines(out)]
    assert found["box"] != found["point"]
    message = refused(*words, f"out={tmp_path / 'box'}")
    assert "prompt: box there, mask now" in message


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pixel_loss=-1"], "pixel_loss=-1"),
        (["weak_masks=1.5"], "weak_masks=1.5"),
        (["pixel_loss=1", "pixel_from=4"], "pixel_from=4 leaves no step of steps=4"),
        (["pixel_from=2"], "pixel_from="),
        (["decoder=somewhere"], "decoder="),
        (["pixel_loss=1", "decoder=nowhere"], "nowhere: "),
        (["pixel_loss=1", "supervision=real_foreground"], "supervision=white_on_black"),
        (["pixel_loss=1", "generation=multi_step_noise_to_mask"], "generation=one_step"),
        (["init=nowhere"], "init=nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_cannot_be_are_refused(refused, train_words, tmp_path, words, says):
    assert says in refused(*train_words, f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()
