"""Training: the reference's step and recipe, what LoRA and EMA change, and what is refused."""

import copy
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import accelerate.tracking
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import (
    STEPS,
    batches_of,
    checkpoints,
    differing,
    log_lines,
    one_step_input,
    reset_accelerate,
    weights,
)

import diffews
from diffews.cli.keys import load
from diffews.cli.settings import EvalConfig
from diffews.cli.training_settings import TrainConfig
from diffews.data.registry import load_benchmark, open_benchmark
from diffews.models.weights import empty_prompt_ids, load_unet, start_unet
from diffews.training.step import TrainingStep
from diffews.training.train import Trainer, make_schedule
from diffews.variants import Variant

pytest_plugins = ("training_fixtures",)

CHECKOUT = Path(diffews.__file__).parent.parent
CONFIGS = CHECKOUT / "configs"
METHOD = Variant().build()  # the released model's


# ---- the reference's step ----


@pytest.fixture
def golden_unet(weight):
    return load_unet(weight / "unet" / "unet", torch.float32).requires_grad_(True).train()


@pytest.fixture
def golden_step(expected):
    golden = expected("unet")
    return {
        name: torch.from_numpy(golden.npz[f"train.{name}"])
        for name in ("support", "query", "mask", "text")
    }


def assert_golden(loss, unet, expected):
    golden = expected("unet").json
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-4)
    norms = {name: parameter.grad.norm().item() for name, parameter in unet.named_parameters()}
    assert norms == pytest.approx(golden["grad_norm"], rel=2e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_every_gradient_are_those_of_the_reference(
    golden_unet, golden_step, expected, checkpointing
):
    if checkpointing:
        golden_unet.enable_gradient_checkpointing()
    images, masks = golden_step["support"].split(4, dim=1)
    step_input = one_step_input(golden_step["query"], golden_step["mask"], images, masks, shots=2)
    assert_golden(
        TrainingStep(golden_unet, golden_step["text"], METHOD)(step_input), golden_unet, expected
    )


def test_a_batch_becomes_a_step_of_the_one_timestep(trainer):
    run = trainer()
    for batch in batches_of(run)[:2]:
        step, n = run.step_input(batch), batch.shots
        assert step.query.shape == step.goal.shape == (2, 4, 8, 8)
        assert [tensor.shape for tensor in step.supports] == [(2 * n, 4, 8, 8)] * 2
        assert (step.masks, step.shots, step.timestep.item()) == (None, n, 1)


def test_episodes_of_a_batch_do_not_see_each_other(golden_unet, golden_step):
    step = TrainingStep(golden_unet, golden_step["text"], METHOD)
    latents = torch.randn(2, 6, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def loss(part):
        images, masks = part[:, 2:4].flatten(0, 1), part[:, 4:].flatten(0, 1)
        return step(one_step_input(part[:, 0], part[:, 1], images, masks, shots=2)).item()

    alone = [loss(episode[None]) for episode in latents]
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)
    assert loss(latents) == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_training_reads_the_padded_prompt_of_77_tokens(trainer, base):
    run = trainer(f"base={base}", "image_size=64")
    assert len(empty_prompt_ids(base)["train"]) == run.module.text.shape[1] == 77
    assert torch.equal(run.module.text, run.text["train"])


# ---- the recipe ----


def test_the_files_of_configs_are_what_the_defaults_say():
    places = ["base=b", "out=o"]  # which each run gives itself
    assert load(TrainConfig, [f"config={CONFIGS / 'train.yaml'}", *places]) == TrainConfig(
        base="b", out="o"
    )
    assert load(EvalConfig, [f"config={CONFIGS / 'eval.yaml'}"]) == EvalConfig()
    tiny = load(TrainConfig, [f"config={CONFIGS / 'tiny.yaml'}", *places])
    assert (tiny.pairs, tiny.schedule, tiny.batch, tiny.steps, tiny.lr) == (
        True,
        "one_cycle",
        8,
        2400,
        1.5e-3,
    )


def test_the_default_optimizer_is_the_references(tiny_base, few_shapes, tmp_path):
    places = [f"base={tiny_base}", f"data={few_shapes}", f"out={tmp_path / 'out'}"]
    config = load(TrainConfig, [*places, "image_size=32", "device=cpu"])
    run = Trainer(config, open_benchmark("coco20i", few_shapes, 0, "train"), tiny_base)
    assert type(run.optimizer.optimizer) is torch.optim.AdamW
    (group,) = run.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]) == (
        (0.9, 0.999),
        1e-8,
        0.01,
        False,
    )
    assert group["lr"] == 1e-5 and len(group["params"]) == len(list(run.unet.parameters()))
    assert not run.unet.is_gradient_checkpointing
    assert run.accelerator.gradient_accumulation_steps == 4
    assert (config.clip, config.batch, config.seed, config.dtype) == (1.0, 1, 42, "auto")
    assert config.sample_posterior and not (config.pairs or config.ema or config.lora)


def rates(config, *steps):
    """The learning rates of some steps, counted from 0."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=config.lr)
    schedule, seen = make_schedule(optimizer, config), []
    for _ in range(config.steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return [seen[step] for step in steps]


def test_the_learning_rate_falls_in_a_line_from_1e_5_to_1e_7():
    start, middle, last = rates(TrainConfig(), 0, 10_000, 19_999)
    assert start == 1e-5
    assert middle == pytest.approx((1e-5 + 1e-7) / 2, rel=1e-9)
    assert last == pytest.approx(1e-7 + (1e-5 - 1e-7) / 20_000, rel=1e-9)


def test_the_learning_rate_can_rise_first():
    config = TrainConfig(steps=100, lr=1e-3, warmup=0.1)
    start, half, top, later = rates(config, 0, 5, 10, 55)
    assert (start, half, top) == pytest.approx((0, 5e-4, 1e-3))
    assert later == pytest.approx((1e-3 + 1e-7) / 2)


def test_one_cycle_rises_for_a_tenth_of_the_steps_and_falls_to_nothing():
    config = load(TrainConfig, [f"config={CONFIGS / 'tiny.yaml'}", "base=b", "out=o"])
    start, top, last = rates(config, 0, 240, 2399)
    assert start == pytest.approx(config.lr / 25)
    assert top == pytest.approx(config.lr, rel=1e-3)
    assert last < config.lr / 1000


def by_hand(run, batches):
    """AdamW, clipping and the linear schedule, written out for a trainer's own latents."""
    config = run.config
    unet = start_unet(run.base, torch.float32, config.seed).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    norms = []
    for step in range(config.steps):
        optimizer.zero_grad()
        for batch in batches[step * config.accumulate :][: config.accumulate]:
            latents, n = run.step_input(batch), batch.shots
            supports, query = torch.cat(latents.supports, dim=1), latents.query  # [B*S, 8, 8, 8]
            timestep, text = torch.tensor(1), run.text["train"]
            bank = unet.encode_support(supports, timestep, text.expand(len(supports), -1, -1), n)
            masks = unet.segment(query, timestep, text.expand(len(query), -1, -1), bank)
            (torch.nn.functional.mse_loss(masks, latents.goal) / config.accumulate).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(unet.parameters(), config.clip).item())
        for group in optimizer.param_groups:
            group["lr"] = 1e-7 + (config.lr - 1e-7) * (1 - step / config.steps)
        optimizer.step()
    return unet, norms


def test_steps_are_those_of_a_loop_written_by_hand(trainer):
    run = trainer("accumulate=2", "clip=0.5", "weight_decay=0.1", "steps=3")
    batches = batches_of(run)
    assert {batch.shots for batch in batches} == {1, 2}
    unet, norms = by_hand(run, batches)
    assert min(norms) > run.config.clip  # so that clipping counts
    stream = iter(batches)
    for _ in range(run.config.steps):
        run.optimizer_step(stream)
    assert run.step == 3
    start = start_unet(run.base, torch.float32, run.config.seed).state_dict()
    for name, want in unet.state_dict().items():
        moved = (want - start[name]).abs().max()
        torch.testing.assert_close(
            run.unet.state_dict()[name], want, rtol=0, atol=1e-3 * moved.item() + 1e-8
        )


def test_the_latents_are_samples_or_means_of_the_vae(trainer):
    run = trainer()
    batch = batches_of(run)[0]
    sampled = run.step_input(batch)
    run.config = dataclasses.replace(run.config, sample_posterior=False)
    means, shots = run.step_input(batch), batch.shots

    def latents(step, row):
        """Query, target, supports and painted masks of an episode, in the order of its noise."""
        supports = [part.unflatten(0, (-1, shots))[row] for part in step.supports]
        return torch.cat([step.query[row, None], step.goal[row, None], *supports])

    for row, index in enumerate(batch.indices):
        query, target = batch.query[row, None], batch.target[row, None]
        pixels = torch.cat([query, target, batch.supports[row], batch.painted[row]])
        posterior = run.vae.encode(pixels.float() / 127.5 - 1).latent_dist
        noise = run.episodes.noise(index, posterior.mean.shape)
        want = posterior.mean * 0.6  # the factor of the tiny base
        torch.testing.assert_close(latents(means, row), want, atol=1e-5, rtol=1e-5)
        want = (posterior.mean + posterior.std * noise) * 0.6
        torch.testing.assert_close(latents(sampled, row), want, atol=1e-5, rtol=1e-5)


# ---- options ----


def test_gradient_checkpointing_changes_no_weight(train, tmp_path):
    plain = train("steps=2", "checkpointing=false", out=tmp_path / "plain")
    checked = train("steps=2", "checkpointing=true", out=tmp_path / "checked")
    assert differing(weights(plain), weights(checked)) == []


def test_workers_change_no_weight(train, trained):
    assert differing(weights(train("workers=2")), weights(trained)) == []


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train, trained, tmp_path):
    assert differing(weights(train()), weights(trained)) == []
    other = train("seed=1", out=tmp_path / "other")
    assert "conv_in_ref.weight" in differing(weights(other), weights(trained))


def test_lora_trains_low_rank_additions_and_the_support_stem_alone(trainer, weighted_base):
    pytest.importorskip("peft")
    run = trainer("lora=2", f"base={weighted_base}", "steps=3")
    before = copy.deepcopy(run.unet.state_dict())
    stream = iter(batches_of(run))
    for _ in range(3):
        run.optimizer_step(stream)
    changed = set(differing(run.unet.state_dict(), before))
    assert {name.rpartition(".")[0] for name in changed if ".lora_" not in name} == {"conv_in_ref"}
    assert {name for name in before if ".lora_" in name} <= changed

    published = run.published()
    assert type(published) is diffews.DiffewsUNet and not hasattr(published, "peft_config")
    plain = weights(weighted_base)
    names = differing(published.state_dict(), plain)
    assert {name.split(".")[-2] for name in names} == {
        "to_q",
        "to_k",
        "to_v",
        "0",
        "conv_in_ref",
    }  # to_out.0
    step_input = run.step_input(batches_of(run)[0])
    with torch.no_grad():
        adapted = run.module(step_input)
        merged = TrainingStep(published, run.text["train"], METHOD)(step_input)
        start = TrainingStep(
            load_unet(weighted_base / "unet", torch.float32), run.text["train"], METHOD
        )
        assert start(step_input).item() != pytest.approx(adapted.item(), rel=1e-4)
    assert merged.item() == pytest.approx(adapted.item(), rel=1e-5)


def test_lora_starts_from_the_seed(train, weighted_base, tmp_path):
    pytest.importorskip("peft")
    words = ("lora=2", f"base={weighted_base}", "steps=2")
    torch.manual_seed(1)
    one = train(*words, out=tmp_path / "one")
    torch.manual_seed(2)
    other = train(*words, out=tmp_path / "other")
    assert differing(weights(one), weights(other)) == []


def test_lora_leaves_a_file_that_makes_the_start_the_published_weights(
    train, weighted_base, tmp_path
):
    pytest.importorskip("peft")
    out = train("lora=2", "ema=0.5", f"base={weighted_base}", "steps=2", out=tmp_path / "out")
    pipe = diffews.load_pipeline(weighted_base, weighted_base)
    before = copy.deepcopy(pipe.unet.state_dict())

    pipe.load_lora_weights(out / "lora")
    pipe.fuse_lora()
    merged = {k.replace(".base_layer", ""): v for k, v in pipe.unet.state_dict().items()}
    for name, want in weights(out).items():
        torch.testing.assert_close(merged[name], want)
    assert differing(weights(out), before)

    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    for name, want in before.items():
        torch.testing.assert_close(pipe.unet.state_dict()[name], want)


def test_what_is_published_with_ema_is_the_average(trainer):
    run = trainer("ema=0.5", "steps=3")
    stream = iter(batches_of(run))
    average = [parameter.detach().clone() for parameter in run.parameters]
    for step in range(3):
        run.optimizer_step(stream)
        decay = (
            min(0.5, (1 + step) / (10 + step)) if step else 0
        )  # diffusers' averages follow faster at first
        average = [
            decay * a + (1 - decay) * p.detach()
            for a, p in zip(average, run.parameters, strict=True)
        ]
    training = [parameter.detach().clone() for parameter in run.parameters]
    published = dict(run.published().named_parameters())
    for (name, _), want, trained in zip(
        run.unet.named_parameters(), average, training, strict=True
    ):
        torch.testing.assert_close(published[name].detach(), want)
        assert not torch.equal(published[name], trained), name
    for parameter, kept in zip(run.parameters, training, strict=True):
        assert torch.equal(parameter, kept)


def test_bf16_computes_in_half_precision_and_keeps_full_weights(train, trained):
    half, full = weights(train("dtype=bf16")), weights(trained)
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert "conv_in.weight" in differing(half, full)
    torch.testing.assert_close(
        half["conv_in.weight"], full["conv_in.weight"], rtol=0, atol=STEPS * 1e-3
    )


# ---- two processes ----


def launch(words, processes, tmp_path, nodes=1):
    """The command under torchrun, on one node or several of so many processes; how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    torchrun += [f"--nnodes={nodes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    started = [
        subprocess.Popen(
            [sys.executable, *torchrun, f"--node_rank={node}", "-m", "diffews", *words],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        )
        for node in range(nodes)
    ]
    output = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(words, process.returncode, *texts)
        for process, texts in zip(started, output, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "nodes"), [(2, 1), (1, 2)])
def test_two_processes_do_what_one_does_with_the_double_batch(
    train, train_words, tmp_path, processes, nodes
):
    words = ["accumulate=2", "checkpoint_every=1", "keep=9", "steps=3", "seed=5", "device=auto"]
    one = train(*words, "batch=2", out=tmp_path / "one")
    words = [*train_words, *words, "batch=1", f"out={tmp_path / 'two'}"]
    ended = launch(words, processes, tmp_path, nodes)
    assert [each.returncode for each in ended] == [0] * nodes, ended
    assert [len(each.stdout.splitlines()) for each in ended] == [1, *[0] * (nodes - 1)]
    two = tmp_path / "two"

    def first_moments(out):  # after one step they are the clipped gradient times 1 - beta1
        state = torch.load(out / "checkpoint-1" / "training.pt", weights_only=True)["optimizer"][
            "state"
        ]
        return [entry["exp_avg"] for entry in state.values()]

    for mine, theirs in zip(first_moments(one), first_moments(two), strict=True):
        torch.testing.assert_close(
            theirs, mine, rtol=1e-4, atol=1e-5 * mine.abs().max().item() + 1e-9
        )
    assert [line.loss for line in log_lines(two)] == pytest.approx(
        [line.loss for line in log_lines(one)], rel=1e-3
    )
    assert log_lines(two)[1].loss != log_lines(two)[0].loss and len(log_lines(two)) == 3
    assert json.loads((one / "run.json").read_text()) == json.loads((two / "run.json").read_text())


# ---- watching ----


def test_every_step_is_logged_and_the_loss_drawn(trained):
    lines = log_lines(trained)
    assert [line.step for line in lines] == [1, 2, 3, 4]
    assert [line.lr for line in lines] == pytest.approx(
        [1e-7 + (1e-3 - 1e-7) * (1 - step / 4) for step in range(4)]
    )
    assert all(np.isfinite(line.loss) and line.loss > 0 for line in lines)
    curve = np.asarray(Image.open(trained / "loss.png"))
    assert curve.shape == (400, 800, 3) and len(np.unique(curve.reshape(-1, 3), axis=0)) > 10


def test_the_logged_loss_is_the_mean_over_the_accumulated_batches(trainer):
    run = trainer("accumulate=2")
    batches = batches_of(run)[:2]
    with torch.no_grad():
        want = [run.module(run.step_input(batch)).item() for batch in batches]
    assert run.optimizer_step(iter(batches)) == pytest.approx(sum(want) / 2, rel=1e-5)


def test_training_learns(train):
    lines = log_lines(train("steps=20", "batch=4", "lr=3e-3", "shots=1", "sample_posterior=false"))
    losses = [line.loss for line in lines]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_validation_draws_and_scores_seen_classes(train, run, train_words, tmp_path):
    out = tmp_path / "watched"
    words = ["validate_every=2", "validate_episodes=3"]
    outcome = run(*train_words, *words, f"out={out}")
    assert outcome.code == 0, outcome
    shown = [line for line in (outcome.out + outcome.err).splitlines() if "mIoU" in line]
    assert [line.strip().split(": mIoU")[0] for line in shown] == ["step 2", "step 4"]
    assert all(line.endswith("on 3 episodes of seen classes") for line in shown)
    for step in (2, 4):
        picture = np.asarray(Image.open(out / "validation" / f"step-{step:06d}.png"))
        assert picture.shape == (
            3 * 32,
            5 * 32 + 4 * 2,
            3,
        )  # two supports, query, prediction, truth; gaps between


def test_validation_changes_no_weight(train, trained):
    watched = train("validate_every=1", "validate_episodes=2")
    assert differing(weights(watched), weights(trained)) == []


@pytest.mark.parametrize(("asked", "novel"), [([], False), (["validate_on=novel"], True)])
def test_validation_sees_a_novel_class_only_when_asked(train, monkeypatch, asked, novel):
    seen = []

    def spy(self, dataset):
        seen.extend(episode.class_id for episode in dataset.episodes)
        return 0.0

    monkeypatch.setattr(Trainer, "validate", spy)
    train("validate_every=4", "validate_episodes=50", "fold=1", *asked)
    assert len(seen) == 50
    assert {class_id % 4 == 1 for class_id in seen} == {novel}


def test_the_validation_split_never_holds_a_novel_class(few_shapes):
    for fold in range(4):
        dataset = load_benchmark("coco20i", few_shapes, fold, split="val")
        assert len(dataset.class_ids) == 60
        for episode in dataset.episodes:
            assert episode.class_id % 4 != fold
            assert {sample.name.split("/")[0] for sample in (episode.query, *episode.supports)} == {
                "val2014"
            }


def test_tensorboard_gets_loss_learning_rate_and_miou(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = train("tracker=tensorboard", "validate_every=2", "validate_episodes=1")
    events = EventAccumulator(str(out / "diffews")).Reload()
    lines = log_lines(out)
    for tag, name in (("loss", "loss"), ("lr", "lr")):
        got = events.Scalars(tag)
        assert [event.step for event in got] == [1, 2, 3, 4]
        assert [event.value for event in got] == pytest.approx(
            [getattr(line, name) for line in lines]
        )
    assert [event.step for event in events.Scalars("miou_seen")] == [2, 4]


def test_a_tracker_that_is_not_installed_names_what_to_install(
    refused, train_words, tmp_path, monkeypatch
):
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    message = refused(*train_words, f"out={tmp_path / 'out'}", "tracker=tensorboard")
    assert "tracker=tensorboard" in message and "pip install" in message


# ---- what stops a run ----


def last_line(outcome):
    """The error of a run whose progress bar stands before it."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1]


@pytest.fixture
def nan_base(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "nan_base")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"][0] = float("nan")
    save_file(tensors, file)
    return folder


def test_a_vae_that_is_not_finite_is_refused_and_leaves_nothing(
    run, train_words, nan_base, tmp_path
):
    line = last_line(run(*train_words, f"base={nan_base}", f"out={tmp_path / 'out'}"))
    assert "encoder.conv_in.weight" in line and "not finite" in line and str(nan_base) in line
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_names_its_episodes_and_keeps_the_checkpoint_before(
    run, trainer, train_words, tmp_path
):
    out = tmp_path / "out"
    line = last_line(run(*train_words, "lr=1e30", "checkpoint_every=1", f"out={out}"))
    assert "the loss of step 2 is " in line
    reset_accelerate()
    for episode in batches_of(trainer())[1].episodes:
        assert json.dumps(episode.names()) in line
    assert checkpoints(out) == ["checkpoint-1"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(out / "checkpoint-1").values())


def test_a_gpu_that_runs_out_of_memory_says_what_to_turn_on(
    run, train_words, tmp_path, monkeypatch
):
    def full(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"
        )

    monkeypatch.setattr(TrainingStep, "forward", full)
    line = last_line(run(*train_words, f"out={tmp_path / 'out'}"))
    advice = ["checkpointing=true", "batch=1", "cache=", "adamw8bit", "lora="]
    assert [line.index(word) for word in advice] == sorted(line.index(word) for word in advice)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fold=4"], "fold=4"),
        (["shots=0"], "shots=0"),
        (["image_size=34"], "image_size=34 is not a multiple of 4"),
        (["image_size=2"], "image_size=2 is not a multiple of 4"),
        (["steps=0"], "steps=0"),
        (["base=nowhere"], "base=nowhere"),
        (["data=nowhere", "splits=folder"], "nowhere/COCO2014/splits/trn/fold0.json"),
        (["data=nowhere"], "nowhere/COCO2014"),
        (["shot=7"], "did you mean 'shots'?"),
        (["resume=newest"], "resume='newest'"),
        (["validate_episodes=2000", "validate_every=1"], "episodes=2000"),
        (["dtype=fp16"], "dtype=fp16"),
        (["lr=-1"], "lr=-1"),
        (["beta1=1"], "beta1=1"),
        (["ema=1.5"], "ema=1.5"),
        (["warmup=1.5", "schedule=one_cycle"], "warmup=1.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_are_refused_before_the_first_step(
    refused, train_words, tmp_path, words, says
):
    out = tmp_path / "out"
    assert says in refused(*train_words, f"out={out}", *words)
    assert not (out / "log.jsonl").exists()


def test_what_training_needs_is_asked_for(refused, train_words):
    assert "out=" in refused(*train_words)
    assert "base=" in refused("train", "out=x")


def test_a_base_without_a_unet_is_refused(refused, train_words, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    shutil.rmtree(base / "unet")
    assert f"{base}" in (
        message := refused(*train_words, f"base={base}", f"out={tmp_path / 'out'}")
    )
    assert "unet/config.json" in message


@pytest.mark.parametrize("part", ["vae/config.json", "text.safetensors"])
def test_a_base_without_a_part_is_refused(refused, train_words, tiny_base, tmp_path, part):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / part).unlink()
    message = refused(*train_words, f"base={base}", f"out={tmp_path / 'out'}")
    assert str(base) in message and part in message


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pickled_part_is_read_only_when_that_is_allowed(
    refused, train, train_words, weighted_base, tmp_path, part
):
    file = weighted_base / part / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    message = refused(*train_words, f"base={weighted_base}", f"out={tmp_path / 'refused'}")
    assert str(file.with_suffix(".bin")) in message and "allow_bin=true" in message
    assert not (tmp_path / "refused").exists()
    train(f"base={weighted_base}", "allow_bin=true", "stop_at=1")


@pytest.mark.parametrize("lost", ["train2014", "annotations/train2014"])
def test_training_pictures_that_are_not_there_are_counted(
    refused, train_words, few_shapes, tmp_path, lost
):
    data = shutil.copytree(few_shapes, tmp_path / "data")
    files = sorted((data / "COCO2014" / lost).iterdir())
    for file in files[:3]:
        file.unlink()
    message = refused(*train_words, f"data={data}", f"out={tmp_path / 'out'}")
    assert f"COCO2014/{lost}/" in message and "3 of " in message


def test_a_training_folder_that_is_not_there_is_named_alone(refused, train_words, tmp_path):
    message = refused(*train_words, f"data={tmp_path / 'nowhere'}", f"out={tmp_path / 'out'}")
    assert f"{tmp_path / 'nowhere' / 'COCO2014' / 'train2014'} does not exist" in message
    assert "files" not in message and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(refused, train_words, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(*train_words, f"out={tmp_path / 'file' / 'out'}")


def test_a_folder_of_other_things_is_left_alone(refused, train_words, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty" in refused(*train_words, f"out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("package", "words"), [("peft", "lora=2"), ("bitsandbytes", "optimizer=adamw8bit")]
)
def test_a_missing_package_is_named(refused, train_words, tmp_path, monkeypatch, package, words):
    for name in (package, f"{package}.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    message = refused(*train_words, words, f"out={tmp_path / 'out'}")
    assert package in message and "pip install" in message
