"""The latent cache: the same training bit for bit, filled once, refused for anything else."""

import contextlib
import io
import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from training_runs import (
    differing,
    log_lines,
    make_few_shapes,
    reset_accelerate,
    weights,
    write_tiny_base,
)

from diffews import InputError
from diffews.cli.commands import run_train
from diffews.cli.keys import load
from diffews.cli.training_settings import TrainConfig
from diffews.data.episodes import decode_sample
from diffews.data.latents import LatentCache
from diffews.data.registry import open_benchmark
from diffews.data.training import PixelReader, Renderings, TrainingEpisodes
from diffews.images.paint import WHITE_ON_BLACK
from diffews.models.weights import load_vae

pytest_plugins = ("training_fixtures",)

LATENT = (4, 2, 2)  # channels, height, width in the tests without a VAE


@pytest.fixture(scope="module")
def benchmark(train_shapes):
    return open_benchmark("coco20i", train_shapes, 0, "train")


@pytest.fixture
def cache(benchmark, tmp_path):
    """cache(): a cache in one folder, opened again as a new process would."""

    def make(folder=tmp_path / "cache", **renderings):
        return LatentCache(folder, benchmark, 32, Renderings(**renderings), "a" * 64, LATENT)

    return make


def encode(pixels):
    """Stands for the VAE: moments [2, C, h, w] that tell pictures apart."""
    coarse = pixels.float().unfold(1, 16, 16).unfold(2, 16, 16).mean((-2, -1)) / 255  # [3, 2, 2]
    mean = torch.cat([coarse, coarse.mean(0, keepdim=True)])
    return torch.stack([mean, mean + 1])


def kept(cache):
    return np.load(cache.folder / "latents.npy"), np.load(cache.folder / "state.npy")


# ---- training ----


@pytest.fixture(scope="module")
def first_run(train_words, tmp_path_factory):
    """A finished run that filled a cache first; never written to."""
    folder = tmp_path_factory.mktemp("first_run")
    reset_accelerate()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_train(
            load(
                TrainConfig,
                [*train_words[1:], f"cache={folder / 'cache'}", f"out={folder / 'out'}"],
            )
        )
    return folder


@pytest.fixture
def own_cache(first_run, tmp_path):
    """Its cache; a test may damage it."""
    return shutil.copytree(first_run / "cache", tmp_path / "cache")


def test_a_run_that_fills_its_cache_trains_the_same_to_the_bit(trained, first_run):
    assert differing(weights(trained), weights(first_run / "out")) == []
    assert [line.loss for line in log_lines(trained)] == [
        line.loss for line in log_lines(first_run / "out")
    ]


@pytest.mark.parametrize(
    "words", [["sample_posterior=false"], ["workers=2", "shots=1"]], ids=" ".join
)
def test_cached_training_is_the_same_to_the_bit(train, own_cache, tmp_path, words):
    plain = train(*words, "steps=2", out=tmp_path / "plain")
    cached = train(*words, "steps=2", f"cache={own_cache}", out=tmp_path / "cached")
    assert differing(weights(plain), weights(cached)) == []
    assert [line.loss for line in log_lines(plain)] == [line.loss for line in log_lines(cached)]


def test_without_a_cache_nothing_is_encoded_before_the_first_step(trainer, monkeypatch):
    monkeypatch.setattr("diffews.training.train.encode_moments", None)
    assert type(trainer().episode_reader()) is PixelReader


def test_the_cache_holds_mean_and_deviation_of_every_picture_and_mask(
    trainer, benchmark, tiny_base, own_cache
):
    cache = trainer(f"cache={own_cache}").episode_reader()
    vae = load_vae(tiny_base, torch.float32)
    pictures = {sample for samples in benchmark.images.values() for sample in samples}
    masks = {(sample, c) for c, samples in benchmark.images.items() for sample in samples}
    images = {(sample, None, "") for sample in pictures}
    painted = {(sample, class_id, "white_on_black") for sample, class_id in masks}
    assert set(cache.rows) == images | painted and len(cache.keys) == len(cache.rows)
    latents, state = kept(cache)
    assert latents.shape == (len(pictures) + len(masks), 2, 4, 8, 8) and latents.dtype == np.float32
    assert (state == 1).all()
    assert (cache.folder / "latents.npy").stat().st_size == cache.nbytes + 128  # its header
    for key in [cache.keys[0], cache.keys[70], cache.keys[-1], cache.keys[-40]]:
        sample, class_id, _ = key
        rgb, mask, _ = decode_sample(benchmark, sample, class_id or 0, 32)
        pixels = rgb if class_id is None else WHITE_ON_BLACK(rgb, mask)
        with torch.no_grad():
            posterior = vae.encode(torch.from_numpy(pixels).float()[None] / 127.5 - 1).latent_dist
        want = torch.cat([posterior.mean, posterior.std]).numpy()
        np.testing.assert_allclose(latents[cache.rows[key]], want, rtol=1e-4, atol=1e-5)


def test_the_cache_of_coco_takes_under_30_gigabytes_a_fold(tmp_path):
    lists = open_benchmark("coco20i", tmp_path, 3, "train", "builtin")
    assert 25e9 < LatentCache(tmp_path, lists, 512, Renderings(), "", (4, 64, 64)).nbytes < 30e9


# ---- filling ----


def test_an_interrupted_fill_goes_on_where_it_stopped(cache):
    whole = cache(folder=cache().folder.parent / "whole")
    whole.prepare()
    whole.fill(encode, workers=0)
    calls = 0

    def interrupted(pixels):
        nonlocal calls
        calls += 1
        if calls > 25:
            raise KeyboardInterrupt
        return encode(pixels)

    cache().prepare()
    with pytest.raises(KeyboardInterrupt):
        cache().fill(interrupted, workers=0)
    assert (kept(cache())[1] != 0).sum() == 25

    fresh, done = 0, cache()

    def counted(pixels):
        nonlocal fresh
        fresh += 1
        return encode(pixels)

    done.prepare()
    done.fill(counted, workers=0)
    assert fresh == len(done.keys) - 25
    for array, want in zip(kept(done), kept(whole), strict=True):
        assert np.array_equal(array, want)
    cache().fill(None, workers=0)  # complete: nothing is encoded


def test_workers_fill_the_same_bytes(cache):
    one, two = cache(), cache(folder=cache().folder.parent / "two")
    for filled, workers in ((one, 0), (two, 2)):
        filled.prepare()
        filled.fill(encode, workers)
    for array, want in zip(kept(one), kept(two), strict=True):
        assert np.array_equal(array, want)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_fill_every_row_once_however_they_overtake_each_other(cache, order):
    cache().prepare()
    fresh = []

    def counted(pixels):
        fresh.append(1)
        return encode(pixels)

    for process in order:
        cache().fill(counted, 0, process, processes=3)
    assert (kept(cache())[1] != 0).all() and len(fresh) == len(cache().keys)


def test_a_row_that_was_never_filled_is_not_read_as_zeros(cache, benchmark):
    cache().prepare()
    with pytest.raises(InputError):
        cache().read(TrainingEpisodes(benchmark, seed=0).draw(0, 1))


def test_a_mask_that_vanishes_is_drawn_again_from_the_cache_too(cache, benchmark):
    filled, seen = cache(), []

    def encode_and_note(pixels):
        seen.append(pixels)
        return encode(pixels)

    filled.prepare()
    filled.fill(encode_and_note, workers=0)
    sample, class_id, _ = filled.keys[-1]
    state = np.load(filled.folder / "state.npy", mmap_mode="r+")
    assert seen[-1].any() and state[-1] == 1
    state[-1] = 2  # as a mask without a pixel is kept
    state.flush()
    episodes = TrainingEpisodes(benchmark, seed=0)
    index = next(
        i
        for i in range(9999)
        if (e := episodes.draw(i, 1)).query == sample and e.class_id == class_id
    )
    assert cache().read(episodes.draw(index, 1)) is None
    assert episodes.batch(cache(), [index], 1).episodes != [episodes.draw(index, 1)]


def test_a_vanishing_mask_is_kept_as_empty(benchmark, tmp_path):
    # two pixels leave most masks out
    cache = LatentCache(tmp_path / "cache", benchmark, 2, Renderings(), "", LATENT)
    cache.prepare()
    cache.fill(lambda pixels: torch.zeros(2, *LATENT), workers=0)
    _, state = kept(cache)
    for (sample, class_id, _), value in zip(cache.keys, state, strict=True):
        empty = class_id is not None and not decode_sample(benchmark, sample, class_id, 2)[1].any()
        assert value == (2 if empty else 1)
    assert (state == 2).any() and (state == 1).any()


# ---- masks that the injection reads ----


def test_masks_are_kept_themselves_where_the_injection_reads_them(cache, benchmark):
    filled = cache(painted=None)
    filled.prepare()
    filled.fill(encode, workers=0)
    packed = np.load(filled.folder / "masks.npy")
    assert packed.shape == (sum(c is not None for _, c, _ in filled.keys), 32 * 32 // 8)
    assert filled.nbytes == packed.nbytes + kept(filled)[0].nbytes

    pixels = PixelReader(benchmark, 32, Renderings(painted=None))
    for index in range(5):
        episode = TrainingEpisodes(benchmark, seed=0).draw(index, 3)
        fields, want = cache(painted=None).read(episode), pixels.read(episode)
        assert fields.keys() == want.keys() == {"query", "target", "supports", "masks"}
        assert torch.equal(fields["masks"], want["masks"]) and fields["masks"].dtype == torch.uint8


def test_a_cache_without_masks_is_not_read_as_one_with(cache):
    cache().prepare()
    with pytest.raises(InputError, match="masks: None there"):
        cache(painted=None).prepare()
    assert not (cache().folder / "masks.npy").exists()


# ---- the disk's space is taken first: a full disk would kill whoever fills a mapped file ----


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_the_space_is_taken_before_the_first_row(cache, monkeypatch, system):
    if system == "macos":
        monkeypatch.delattr("os.posix_fallocate")
    cache().prepare()
    file = cache().folder / "latents.npy"
    assert file.stat().st_blocks * 512 >= cache().nbytes
    latents, state = kept(cache())
    assert latents.shape == (len(cache().keys), 2, *LATENT) and latents.dtype == np.float32
    assert not latents.any() and not state.any()


def test_a_disk_that_is_full_after_all_is_an_error(cache, monkeypatch, largest_file):
    monkeypatch.delattr("os.posix_fallocate")
    with largest_file(cache().nbytes // 2), pytest.raises(OSError):
        cache().prepare()


# ---- what is refused ----


@pytest.mark.parametrize(
    "what", ["vae", "vae_config", "image_size", "fold", "pictures", "precision"]
)
def test_a_cache_of_something_else_is_refused(refused, train_words, own_cache, tmp_path, what):
    if what == "vae":
        word, says = f"base={write_tiny_base(tmp_path / 'base', seed=1)}", "vae_sha256: "
    elif what == "vae_config":  # the same weights, scaled otherwise
        base = write_tiny_base(tmp_path / "base")
        config = base / "vae" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))
        word, says = f"base={base}", "vae_sha256: "
    elif what == "image_size":
        word, says = "image_size=64", "image_size: 32 there, 64 now"
    elif what == "fold":
        word, says = "fold=1", "names_sha256: "
    elif what == "pictures":
        word, says = f"data={make_few_shapes(tmp_path / 'data', per_class=3)}", "names_sha256: "
    else:
        word, says = "dtype=bf16", "vae_dtype: "  # the VAE computes in it, too
    message = refused(*train_words, word, f"cache={own_cache}", f"out={tmp_path / 'out'}")
    assert str(own_cache) in message and says in message


def test_too_little_disk_is_said_before_it_starts(refused, train_words, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 100_000, 100_000))
    message = refused(*train_words, f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}")
    assert f"cache={tmp_path / 'cache'}" in message and "0.0 GB" in message
    assert not (tmp_path / "cache" / "latents.npy").exists()


def test_a_cache_that_was_cut_short_is_named(refused, train_words, own_cache, tmp_path):
    file = own_cache / "latents.npy"
    file.write_bytes(file.read_bytes()[:-100])
    assert str(file) in refused(*train_words, f"cache={own_cache}", f"out={tmp_path / 'out'}")
