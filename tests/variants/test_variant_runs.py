"""Every variant through the command line: trained, evaluated, cached, stopped and gone on."""

import contextlib
import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import (
    batches_of,
    differing,
    log_lines,
    pixel_reader,
    reset_accelerate,
    weights,
)

from diffews import DiffewsUNet, load_pipeline
from diffews.cli.keys import load
from diffews.cli.main import main
from diffews.cli.training_settings import TrainConfig
from diffews.data.latents import LatentCache
from diffews.data.training import TrainingBatch
from diffews.models.token_unet import TokenUNet
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant

pytest_plugins = ("training_fixtures",)

LARGE_BETAS = ("generation=multi_step_image_to_mask", "beta_start=0.0272", "beta_end=0.384")
COMBINATIONS = [
    *(
        (f"interaction={i}", f"injection={j}")
        for i, j in itertools.product(INTERACTIONS, INJECTIONS)
    ),
    *((f"supervision={word}",) for word in SUPERVISIONS[1:]),
    *((f"generation={word}",) for word in GENERATIONS[1:]),
    LARGE_BETAS,
    (
        "interaction=qkv_fusion",
        "injection=attention_mask",
        "supervision=mask_over_image",
        f"generation={GENERATIONS[2]}",
    ),
    (
        "interaction=cross_attention",
        "injection=multiplication_latent",
        f"generation={GENERATIONS[1]}",
    ),
]
KINDS = [
    ("interaction=qkv_fusion", "injection=concatenation"),
    ("interaction=cross_attention", "injection=concatenation"),
    ("interaction=kv_fusion", "injection=attention_mask"),
    ("interaction=kv_fusion", "injection=multiplication_latent"),
    ("supervision=real_foreground",),
    ("generation=multi_step_image_to_mask",),
    ("generation=multi_step_noise_to_mask",),
]


@pytest.fixture(scope="session")
def variant_run(train_words, tmp_path_factory):
    """variant_run(*words): the folder of a finished run, trained once; never written to."""
    folder, made = tmp_path_factory.mktemp("variants"), {}

    def call(*words):
        if words not in made:
            made[words] = folder / str(len(made))
            reset_accelerate()
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()) as errors,
            ):
                code = main([*train_words, *words, f"out={made[words]}"])
            assert code == 0, errors.getvalue()
        return made[words]

    return call


BY_FIELD = ("query", "target", "supports", "painted")  # of a batch of the released injection


def read(file: Path):
    return json.loads(file.read_text())


def named(words):
    """The keys of `key=value` words, as a variant records them."""
    config = load(TrainConfig, ["base=b", "out=o", *words])
    return Variant.of(vars(config)).asdict()


# ---- train, then eval ----


@pytest.mark.parametrize("words", COMBINATIONS, ids="-".join)
def test_a_variant_trains_and_is_evaluated_without_saying_it_again(
    variant_run, run, few_shapes, tmp_path, words
):
    out = variant_run(*words)
    losses = [line.loss for line in log_lines(out)]
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)
    assert read(out / "diffews.json")["variant"] == named(words)
    words_of_eval = [
        f"weight={out}",
        f"data={few_shapes}",
        "shots=2",
        "episodes=2",
        "batch=2",
        "workers=0",
    ]
    found = run("eval", *words_of_eval, f"out={tmp_path}")
    assert found.code == 0, found
    result = read(tmp_path / "result.json")
    assert result["variant"] == named(words) and result["image_size"] == 32
    assert 0 <= result["miou"] <= 100


@pytest.mark.slow
@pytest.mark.parametrize("words", COMBINATIONS, ids="-".join)
def test_fifty_steps_lower_the_loss_of_every_variant(variant_run, words):
    out = variant_run(*words, "steps=50", "batch=4", "lr=3e-3", "shots=1", "sample_posterior=false")
    losses = [line.loss for line in log_lines(out)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    moved = differing(weights(out), weights(variant_run(*words)))
    assert moved


def test_every_word_trains_other_weights(variant_run):
    plain = weights(variant_run(*COMBINATIONS[0]))  # the released model's words
    for words in COMBINATIONS[1:]:
        other = weights(variant_run(*words))
        assert any(not torch.equal(tensor, other[name]) for name, tensor in plain.items()), words


def test_the_default_words_train_what_no_words_train(variant_run, trained):
    assert differing(weights(variant_run(*COMBINATIONS[0])), weights(trained)) == []


@pytest.mark.parametrize("words", KINDS, ids="-".join)
def test_only_what_the_loss_reaches_trains_and_all_of_it_does(trainer, words):
    run = trainer(*words)
    batch = batches_of(run)[0]
    run.module(run.step_input(batch)).backward()
    for name, parameter in run.unet.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name.split(".")[0] for name, p in run.unet.named_parameters() if not p.requires_grad}
    assert frozen <= {"conv_in", "conv_in_ref"}


def test_the_weight_dir_says_which_class_its_unet_is(variant_run, tiny_base):
    for words, kind in ((KINDS[0], DiffewsUNet), (KINDS[1], TokenUNet)):
        assert type(load_pipeline(variant_run(*words)).unet) is kind


# ---- noise and timesteps ----


@pytest.mark.parametrize("generation", GENERATIONS[1:])
def test_noise_and_timesteps_are_a_function_of_seed_and_index(trainer, generation):
    run = trainer(f"generation={generation}", "sample_posterior=false")
    first, second = batches_of(run)[:2]
    whole = run.step_input(first)
    assert whole.timestep.shape == (2,)
    for row, index in enumerate(first.indices):
        fields = {name: getattr(first, name)[[row]] for name in BY_FIELD}
        alone = TrainingBatch([first.episodes[row]], [index], first.shots, **fields)
        step = run.step_input(alone)
        assert torch.equal(step.query[0], whole.query[row]) and torch.equal(
            step.goal[0], whole.goal[row]
        )
        assert step.timestep[0] == whole.timestep[row]
    again, other = run.step_input(first), trainer(f"generation={generation}", "seed=7", out="other")
    assert torch.equal(again.query, whole.query)
    elsewhere = other.step_input(first)
    assert not torch.equal(elsewhere.timestep, whole.timestep)
    assert not torch.equal(run.step_input(second).timestep, whole.timestep)


# ---- stop and go on ----


@pytest.mark.parametrize("words", KINDS, ids="-".join)
def test_a_stopped_run_goes_on_to_the_same_weights(variant_run, train, tmp_path, words):
    cache = [f"cache={tmp_path / 'cache'}"] if "injection=multiplication_latent" in words else []
    out = tmp_path / "out"
    train(*words, *cache, "stop_at=2", out=out)
    assert not (out / "unet").exists()
    train(*words, *cache, "resume=latest", out=out)
    whole = variant_run(*words)
    assert differing(weights(out), weights(whole)) == []
    assert [line.loss for line in log_lines(out)] == [line.loss for line in log_lines(whole)]


def test_a_run_of_another_variant_does_not_go_on(train, refused, train_words, tmp_path):
    out = train("stop_at=1", "interaction=qkv_fusion", out=tmp_path / "out")
    message = refused(*train_words, f"out={out}", "resume=latest")
    assert "interaction: qkv_fusion there, kv_fusion now" in message


# ---- cache ----


@pytest.mark.parametrize(
    "words",
    [
        ("injection=attention_mask",),
        ("injection=addition",),
        (
            "interaction=qkv_fusion",
            "injection=multiplication_latent",
            "supervision=black_foreground",
        ),
        ("generation=multi_step_noise_to_mask", "injection=multiplication_rgb"),
    ],
    ids="-".join,
)
def test_cached_training_of_a_variant_is_the_same_to_the_bit(variant_run, train, tmp_path, words):
    cached = train(*words, f"cache={tmp_path / 'cache'}", out=tmp_path / "cached")
    assert differing(weights(cached), weights(variant_run(*words))) == []


def test_a_cache_keeps_both_pictures_of_a_mask(trainer, tmp_path):
    run = trainer(
        "injection=multiplication_rgb", "supervision=real_foreground", f"cache={tmp_path / 'cache'}"
    )
    cache = run.episode_reader()
    assert isinstance(cache, LatentCache)
    assert {name for _, _, name in cache.keys} == {"", "masked", "real_foreground"}
    episode = run.episodes.draw(0, 2)
    pixels, moments = pixel_reader(run).read(episode), cache.read(episode)
    assert pixels.keys() == moments.keys() == {"query", "target", "painted"}
    for name, rgb in pixels.items():
        with torch.no_grad():
            posterior = run.vae.encode(rgb.reshape(-1, 3, 32, 32).float() / 127.5 - 1).latent_dist
        want = torch.stack([posterior.mean, posterior.std], dim=1)
        torch.testing.assert_close(
            moments[name].reshape(want.shape), want, rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("injection", ["attention_mask", "multiplication_latent"])
def test_an_injection_that_reads_masks_gets_them_whole_from_cache_and_disk(
    trainer, tmp_path, injection
):
    run = trainer(f"injection={injection}", f"cache={tmp_path / 'cache'}")
    from_disk = batches_of(run)[0]
    from_cache = run.batch_reader(run.episode_reader()).read(0)
    assert from_disk.painted is None and from_cache.painted is None
    assert from_disk.masks.shape == (2, from_disk.shots, 32, 32)
    assert torch.equal(from_disk.masks, from_cache.masks)

    one, other = run.step_input(from_disk), run.step_input(from_cache)
    assert one.masks.shape == (2 * one.shots, 32, 32) and torch.equal(one.masks, other.masks)
    (mine,), (theirs,) = one.supports, other.supports
    assert torch.equal(mine, theirs)


def test_a_cache_of_other_pictures_is_refused(train, refused, train_words, tmp_path):
    cache = f"cache={tmp_path / 'cache'}"
    train(cache, "steps=1", out=tmp_path / "one")
    message = refused(*train_words, cache, "injection=addition", f"out={tmp_path / 'two'}")
    assert "another run" in message and "rows: " in message


# ---- what is refused ----


def test_a_cache_is_refused_where_supports_are_read_as_pixels(refused, train_words, tmp_path):
    words = [
        "interaction=cross_attention",
        f"cache={tmp_path / 'cache'}",
        f"out={tmp_path / 'out'}",
    ]
    message = refused(*train_words, *words)
    assert "interaction=cross_attention" in message and "cache=" in message
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_a_base_without_an_image_encoder_is_refused(refused, train_words, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    shutil.rmtree(base / "image_encoder")
    words = [f"base={base}", "interaction=cross_attention", f"out={tmp_path / 'out'}"]
    message = refused(*train_words, *words)
    assert (
        str(base) in message
        and "image_encoder/config.json" in message
        and "cross_attention" in message
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("interaction=kv", "interaction='kv'"),
        ("injection=atention_mask", "did you mean 'attention_mask'?"),
        ("supervision=real_forground", "did you mean 'real_foreground'?"),
        ("generation=multi_step", "generation='multi_step'"),
        ("beta_start=0", "beta_start=0"),
        ("beta_end=2", "beta_end=2"),
        ("beta_start=0.5", "beta_start=0.5"),
    ],
)
def test_wrong_words_are_refused_before_anything_loads(refused, train_words, tmp_path, word, says):
    assert says in refused(*train_words, f"out={tmp_path / 'out'}", word)
    assert not (tmp_path / "out").exists()


def test_a_weight_dir_of_an_unknown_variant_is_refused(
    trained, refused, few_shapes, tiny_base, tmp_path
):
    folder = shutil.copytree(trained, tmp_path / "weight")
    record = read(folder / "diffews.json")
    record["variant"]["interaction"] = "qk_fusion"
    (folder / "diffews.json").write_text(json.dumps(record))
    words = [
        "eval",
        f"weight={folder}",
        f"base={tiny_base}",
        f"data={few_shapes}",
        "workers=0",
        "episodes=1",
    ]
    message = refused(*words, f"out={tmp_path / 'out'}")
    assert (
        "interaction='qk_fusion' is not one of" in message
        and "did you mean 'qkv_fusion'" in message
    )


@pytest.mark.parametrize("interaction", INTERACTIONS[1:])
def test_sampling_keys_and_values_is_refused_where_there_are_none(
    variant_run, refused, few_shapes, tmp_path, interaction
):
    weight = variant_run(f"interaction={interaction}", "injection=concatenation")
    words = [
        "eval",
        f"weight={weight}",
        f"data={few_shapes}",
        "workers=0",
        "episodes=1",
        "kv_sampling=1",
    ]
    assert "kv_sampling= needs interaction=kv_fusion" in refused(*words, f"out={tmp_path / 'out'}")


# ---- pictures of one's own ----


@pytest.mark.parametrize("words", KINDS, ids="-".join)
def test_a_variant_segments_pictures(variant_run, picture, square_mask, words):
    pipe = load_pipeline(variant_run(*words))
    supports, masks = [picture(1, 50, 40), picture(2)], [square_mask(50, 40), square_mask()]
    bank = pipe.encode_support(supports, masks)
    output = pipe([picture(3, 33, 71), picture(4)], bank, batch=2)
    assert [mask.shape for mask in output.masks] == [(71, 33), (64, 64)]
    alone = pipe(picture(3, 33, 71), bank)
    assert (alone.masks[0] != output.masks[0]).mean() < 0.005
    (labels,) = pipe.label(picture(4), [bank])
    assert (labels != pipe(picture(4), bank).masks[0]).mean() < 0.005


@pytest.mark.parametrize("interaction", INTERACTIONS[1:])
def test_a_bank_that_cannot_be_saved_is_refused(
    variant_run, refused, picture, square_mask, tmp_path, interaction
):
    weight = variant_run(f"interaction={interaction}", "injection=concatenation")
    picture(1).save(tmp_path / "support.png")
    Image.fromarray(square_mask()).save(tmp_path / "mask.png")
    words = [f"support={tmp_path / 'support.png'}", f"mask={tmp_path / 'mask.png'}"]
    words += [f"query={tmp_path / 'support.png'}", f"out={tmp_path / 'out'}", "threads=1"]
    message = refused(
        "segment", f"weight={weight}", *words, f"save_bank={tmp_path / 'bank.safetensors'}"
    )
    assert "interaction=kv_fusion" in message
