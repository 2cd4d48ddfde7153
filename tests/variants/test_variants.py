"""The paper's variants against oracles of other code: plain UNets, formulas, transformers' CLIP."""

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffews import DiffewsPipeline, InputError
from diffews.images.masks import THRESHOLD_RULES, quantize, scores_and_limit
from diffews.images.paint import from_pixels, to_pixels
from diffews.models.attention import JointPass, SupportBank
from diffews.models.token_unet import TokenUNet
from diffews.models.vae import decode_latents
from diffews.variants import GENERATIONS, INJECTIONS, INTERACTIONS, SUPERVISIONS, Variant
from diffews.variants.generation import (
    ImageToMask,
    NoiseToMask,
    OneStep,
    multi_resolution_noise,
)
from diffews.variants.injection import INJECTION, Support
from diffews.variants.interaction import INTERACTION
from diffews.variants.supervision import SUPERVISION

STEP = torch.tensor(1)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ENCODER = {
    **{"hidden_size": 32, "intermediate_size": 64, "projection_dim": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "image_size": 32, "patch_size": 8},
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unets(tiny_unet_config):
    """The tiny UNet of each interaction, of the same weights where they share them."""
    torch.manual_seed(0)
    tokens = (
        TokenUNet(**tiny_unet_config, image_encoder_config=ENCODER).eval().requires_grad_(False)
    )
    torch.nn.init.normal_(tokens.conv_in_ref.weight, std=0.1)
    return dict.fromkeys(INTERACTIONS, tokens)


@pytest.fixture(scope="module")
def plain(tiny_unet_config, unets):
    """plain(latents): minus the output of diffusers' own UNet, which has no support."""
    stock = UNet2DConditionModel(**tiny_unet_config).eval()
    own = unets["kv_fusion"].state_dict()
    stock.load_state_dict({name: own[name] for name in stock.state_dict()})

    @torch.no_grad()
    def call(latents, timestep=STEP):
        return -stock(latents, timestep, text().expand(len(latents), -1, -1)).sample

    return call


def text():
    return randn(1, 5, 24, seed=9)


@pytest.fixture(scope="module")
def answer(unets):
    """answer(interaction, queries, support, shots): mask latents by `prepare` and `segment`."""

    @torch.no_grad()
    def call(interaction, queries, support, shots=1):
        unet, method = unets[interaction], INTERACTION[interaction]
        return method.segment(
            unet, queries, STEP, text(), method.prepare(unet, support, STEP, text(), shots)
        )

    return call


def features(interaction, count, seed=1):
    """What `prepare` takes of supports: latents [B*S, 4, 16, 16], or tokens [B*S, 24, 4, 4]."""
    return (
        randn(count, 24, 4, 4, seed=seed)
        if interaction == "cross_attention"
        else randn(count, 4, 16, 16, seed=seed)
    )


def visible(interaction, count, rows=slice(None)):
    """Nothing is visible but these rows of each support."""
    mask = torch.zeros(count, 1, *features(interaction, 1).shape[-2:], dtype=torch.bool)
    mask[:, :, rows] = True
    return mask


QUERIES = randn(2, 4, 16, 16, seed=3)
NONE = slice(0, 0)


# ---- attention mask ----


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_mask_that_hides_nothing_changes_nothing(answer, interaction):
    maps = (features(interaction, 4),)
    seen = answer(interaction, QUERIES, Support(maps, visible(interaction, 4)), shots=2)
    torch.testing.assert_close(
        seen, answer(interaction, QUERIES, Support(maps), shots=2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_hidden_support_leaves_the_plain_unet(answer, plain, interaction):
    hidden = Support((features(interaction, 4),), visible(interaction, 4, NONE))
    torch.testing.assert_close(
        answer(interaction, QUERIES, hidden, shots=2), plain(QUERIES), **CLOSE
    )
    shown = Support(hidden.maps, visible(interaction, 4, slice(0, 1)))
    assert (answer(interaction, QUERIES, shown, shots=2) - plain(QUERIES)).abs().max() > 1e-3


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_a_hidden_shot_counts_for_nothing(answer, interaction):
    """Its image reaches neither the query nor, in a joint pass, the other shot."""
    (first, second), mask = features(interaction, 2).split(1), visible(interaction, 2)
    mask[1] = False
    alone = answer(interaction, QUERIES[:1], Support((first,), mask[:1]))
    for image in (second, features(interaction, 1, seed=8)):
        both = answer(
            interaction, QUERIES[:1], Support((torch.cat([first, image]),), mask), shots=2
        )
        torch.testing.assert_close(both, alone, **CLOSE)


def test_hidden_tokens_of_cross_attention_may_be_anything(answer):
    maps, mask = features("cross_attention", 1), visible("cross_attention", 1, slice(1, 3))
    changed = torch.where(mask, maps, randn(*maps.shape, seed=5))
    one, other = (
        answer("cross_attention", QUERIES[:1], Support((m,), mask)) for m in (maps, changed)
    )
    torch.testing.assert_close(one, other, **CLOSE)


def test_hidden_keys_and_values_of_a_bank_may_be_anything(unets):
    unet, mask = unets["kv_fusion"], visible("kv_fusion", 1, slice(0, 5))
    with torch.no_grad():
        bank = INTERACTION["kv_fusion"].prepare(
            unet, Support((features("kv_fusion", 1),), mask), STEP, text(), 1
        )
        layers = {}
        for name, (key, value, seen) in bank._layers.items():
            noise = randn(*key.shape, seed=5)
            layers[name] = (
                torch.where(seen > 0, key, noise),
                torch.where(seen > 0, value, noise),
                seen,
            )
        words = text().expand(2, -1, -1)
        one, other = (unet.segment(QUERIES, STEP, words, b) for b in (bank, SupportBank(1, layers)))
    torch.testing.assert_close(one, other, **CLOSE)


def test_a_token_is_visible_if_any_part_of_it_is(unets):
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 9, 3] = True
    with torch.no_grad():
        bank = unets["kv_fusion"].encode_support(features("kv_fusion", 1), STEP, text(), 1, mask)
    for _, (key, _, seen) in bank._layers.items():
        side = int(key.shape[1] ** 0.5)
        places = torch.zeros(side, side)
        places[9 * side // 16, 3 * side // 16] = 1
        assert torch.equal(seen[0, :, 0].reshape(side, side), places)


# ---- who reads whom ----


@pytest.mark.parametrize("interaction", INTERACTIONS)
@pytest.mark.parametrize("hides", [False, True])
def test_queries_of_a_batch_read_their_own_supports_alone(answer, interaction, hides):
    maps = features(interaction, 4)
    mask = visible(interaction, 4, slice(0, 2)) if hides else None
    if hides:
        mask[2:] = ~mask[2:]
    together = answer(interaction, QUERIES, Support((maps,), mask), shots=2)
    for row, own in enumerate((slice(0, 2), slice(2, 4))):
        part = Support((maps[own],), None if mask is None else mask[own])
        alone = answer(interaction, QUERIES[row : row + 1], part, shots=2)
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    assert (
        together[:1] - answer(interaction, QUERIES[:1], Support((maps[2:],)), shots=2)
    ).abs().max() > 1e-3


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_the_order_of_the_shots_does_not_matter(answer, interaction):
    maps, order = features(interaction, 3), torch.tensor([2, 0, 1])
    mask = visible(interaction, 3, slice(0, 2))
    mask[1] = True
    one = answer(interaction, QUERIES[:1], Support((maps,), mask), shots=3)
    other = answer(interaction, QUERIES[:1], Support((maps[order],), mask[order]), shots=3)
    torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("interaction", ["qkv_fusion", "cross_attention"])
def test_one_support_set_serves_many_queries_and_sets_can_be_sliced(unets, interaction):
    unet, method = unets[interaction], INTERACTION[interaction]
    with torch.no_grad():
        sets = method.prepare(unet, Support((features(interaction, 4),)), STEP, text(), 2)
        assert (sets.batch, sets.shots) == (2, 2)
        each = method.segment(unet, QUERIES, STEP, text(), sets)
        first = method.segment(unet, QUERIES, STEP, text(), sets[:1])
    torch.testing.assert_close(first[0], each[0], **CLOSE)
    assert (first[1] - each[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="3 queries cannot read 2 support sets"):
        sets.expand(3)


# ---- QKV fusion ----


def test_without_supports_the_joint_pass_is_the_plain_unet(unets, plain):
    with torch.no_grad():
        got = unets["qkv_fusion"].segment_jointly(
            QUERIES, torch.zeros(0, 8, 16, 16), STEP, text(), shots=0
        )
    torch.testing.assert_close(got, plain(QUERIES), **CLOSE)


def test_supports_of_a_joint_pass_are_clean_whatever_the_querys_timestep(unets, plain):
    """Hidden supports, and queries at timesteps of their own: those of the plain UNet."""
    steps = torch.tensor([700, 20])
    supports, hidden = randn(2, 4, 16, 16, seed=4), visible("qkv_fusion", 2, NONE)
    with torch.no_grad():
        got = unets["qkv_fusion"].segment_jointly(QUERIES, supports, steps, text(), 1, hidden)
    torch.testing.assert_close(got, plain(QUERIES, steps), **CLOSE)


def test_one_timestep_for_all_queries_of_a_joint_pass_is_that_timestep_for_each(unets):
    supports = randn(2, 8, 16, 16, seed=4)
    with torch.no_grad():
        one, each = (
            unets["qkv_fusion"].segment_jointly(QUERIES, supports, steps, text(), 1)
            for steps in (torch.tensor(700), torch.tensor([700, 700]))
        )
    assert torch.equal(one, each)


@pytest.mark.parametrize("hides", [False, True])
def test_one_joint_layer_is_attention_over_all_tokens_in_a_row(unets, hides):
    layer = next(m for name, m in unets["qkv_fusion"].named_modules() if name.endswith("attn1"))
    batch, shots, side, channels = 2, 2, 4, layer.to_q.in_features
    tokens = randn(batch * (1 + shots), side * side, channels, seed=6)
    mask = visible_rows(batch * shots, side) if hides else None
    with torch.no_grad():
        got = layer(tokens, joint=JointPass(shots, mask))
    queries, supports = tokens[:batch], tokens[batch:].reshape(batch, shots, side * side, channels)
    for row in range(batch):
        line = torch.cat([queries[row], *supports[row]])[None]  # [1, N + S*N, C]
        heads = lambda x: x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
        read = None
        if mask is not None:
            read = torch.cat(
                [torch.ones(side * side, dtype=torch.bool), mask[row * shots :][:shots].flatten()]
            )
        with torch.no_grad():
            out = F.scaled_dot_product_attention(
                *(heads(linear(line)) for linear in (layer.to_q, layer.to_k, layer.to_v)),
                attn_mask=None
                if read is None
                else read[None, None, None].expand(1, 1, line.shape[1], -1),
            )
            want = layer.to_out[0](out.transpose(1, 2).flatten(2))[0].split(side * side)
        torch.testing.assert_close(got[row], want[0], **CLOSE)
        for shot in range(shots):
            torch.testing.assert_close(got[batch + row * shots + shot], want[1 + shot], **CLOSE)


def visible_rows(count, side):
    """A mask of another share of every support."""
    mask = torch.zeros(count, 1, side, side, dtype=torch.bool)
    for number in range(count):
        mask[number, :, : 1 + number % (side - 1)] = True
    return mask


# ---- cross-attention ----


def test_image_tokens_are_the_projected_patches_of_transformers_clip(unets):
    unet = unets["cross_attention"]
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER)).eval()
    clip.load_state_dict(unet.image_encoder.state_dict())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = processor(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        hidden = clip.vision_model(pixels).last_hidden_state
        projected = clip.visual_projection(
            clip.vision_model.post_layernorm(hidden)
        )  # [2, 1 + 16, 24]
        got = unet.encode_images(to_pixels(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
        torch.testing.assert_close(
            projected[:, 0], clip(pixels).image_embeds, **CLOSE
        )  # as CLIP projects its class
    torch.testing.assert_close(got, projected[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4), **CLOSE)


def test_pictures_of_any_size_become_tokens(unets):
    flat = torch.full((1, 3, 96, 96), 0.25)
    with torch.no_grad():
        want = unets["cross_attention"].encode_images(flat[..., :32, :32])
        torch.testing.assert_close(unets["cross_attention"].encode_images(flat), want, **CLOSE)


def test_the_query_reads_text_and_tokens_in_one_row(unets, plain, tiny_unet_config):
    """Diffusers' own UNet, given the tokens as if they were words."""
    stock = UNet2DConditionModel(**tiny_unet_config).eval()
    own = unets["cross_attention"].state_dict()
    stock.load_state_dict({name: own[name] for name in stock.state_dict()})
    image, drawn = features("cross_attention", 2, seed=1), features("cross_attention", 2, seed=2)
    unet, method = unets["cross_attention"], INTERACTION["cross_attention"]
    with torch.no_grad():
        state = method.prepare(unet, Support((image, drawn)), STEP, text(), shots=2)
        got = method.segment(unet, QUERIES[:1], STEP, text(), state)
        tokens = [m[shot].flatten(1).T for shot in range(2) for m in (image, drawn)]
        want = -stock(QUERIES[:1], STEP, torch.cat([text()[0], *tokens])[None]).sample
    torch.testing.assert_close(got, want, **CLOSE)


def test_an_image_encoder_of_another_width_is_refused(tiny_unet_config):
    with pytest.raises(InputError, match="tokens of 16 channels, the UNet takes 24"):
        TokenUNet(**tiny_unet_config, image_encoder_config={**ENCODER, "projection_dim": 16})


# ---- injection ----


def test_injections_are_what_the_paper_says():
    rgb = np.random.default_rng(0).integers(0, 256, (3, 6, 5), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 2, (6, 5), dtype=np.uint8)
    inside = mask.astype(bool)
    want = {
        "concatenation": np.where(inside, 255, 0 * rgb),
        "multiplication_rgb": np.where(inside, rgb, 0),
        "addition": 0.5 * rgb + 0.5 * np.where(inside, 255, 0),
    }
    for name, picture in want.items():
        painted = INJECTION[name].painted(rgb, mask)
        assert np.abs(painted - picture).max() <= 0.5, name


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("concatenation", ["image", "painted"]),
        ("multiplication_rgb", ["painted"]),
        ("addition", ["painted"]),
        ("multiplication_latent", ["image"]),
        ("attention_mask", ["image"]),
    ],
)
def test_an_injection_encodes_what_it_reads_and_nothing_else(name, encoded):
    pixels = to_pixels(torch.randint(0, 256, (2, 3, 8, 8)))
    masks = torch.zeros(2, 8, 8)
    masks[:, 2:5] = 1
    known = {"image": pixels}
    if INJECTION[name].painted is not None:
        rgb, whole = from_pixels(pixels).numpy().astype(np.uint8), masks.numpy().astype(np.uint8)
        painted = [INJECTION[name].painted(*pair) for pair in zip(rgb, whole, strict=True)]
        known["painted"] = to_pixels(torch.from_numpy(np.stack(painted)))
    pictures = INJECTION[name].encoded(pixels, masks)
    assert len(pictures) == len(encoded)
    for picture, kind in zip(pictures, encoded, strict=True):
        assert torch.equal(picture, known[kind])


def test_masks_that_are_read_as_they_are_act_by_their_share_under_each_latent():
    image, masks = randn(1, 4, 2, 2), torch.zeros(1, 8, 8)
    masks[0, :3, :4] = 1
    shares = torch.tensor([[[[0.75, 0.0], [0.0, 0.0]]]])
    times = INJECTION["multiplication_latent"].join([image], masks)
    assert torch.equal(times.maps[0], image * shares)
    hidden = INJECTION["attention_mask"].join([image], masks)
    assert torch.equal(hidden.maps[0], image) and torch.equal(hidden.visible, shares > 0)


@pytest.mark.parametrize(
    "rendering",
    [i.painted for i in INJECTION.values() if i.painted] + [s.target for s in SUPERVISION.values()],
)
def test_arrays_and_tensors_are_painted_alike(rendering):
    """Training paints whole numbers, the pipeline floats."""
    rgb = np.arange(3 * 256, dtype=np.int64).reshape(3, 16, 16).astype(np.uint8)
    for mask in (np.zeros((16, 16), np.uint8), np.ones((16, 16), np.uint8)):
        pixels = from_pixels(to_pixels(torch.from_numpy(rgb)))
        assert torch.equal(pixels, torch.from_numpy(rgb).float())
        painted = rendering.paint(pixels, torch.from_numpy(mask).float())
        want = torch.from_numpy(rendering(rgb, mask))
        assert torch.equal(painted, want.float())
        on_pixels = rendering.on(
            to_pixels(torch.from_numpy(rgb))[None], torch.from_numpy(mask)[None]
        )
        assert torch.equal(on_pixels[0], to_pixels(want))


# ---- supervision ----


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
@pytest.mark.parametrize("name", SUPERVISIONS)
def test_a_mask_is_got_back_exactly_from_its_own_picture(name, rule):
    draws = np.random.default_rng(0)
    pictures = [
        *draws.integers(0, 256, (4, 3, 12, 12), dtype=np.uint8),
        np.zeros((3, 12, 12), np.uint8),
    ]
    pictures += [np.full((3, 12, 12), 255, np.uint8), np.full((3, 12, 12), 1, np.uint8)]
    masks = [
        draws.integers(0, 2, (12, 12), dtype=np.uint8),
        np.ones((12, 12), np.uint8),
        np.zeros((12, 12), np.uint8),
    ]
    for rgb, mask in itertools.product(pictures, masks):
        decoded = torch.from_numpy(SUPERVISION[name].target(rgb, mask))[None].float()
        scores = SUPERVISION[name].recover(decoded, to_pixels(torch.from_numpy(rgb))[None])
        assert scores.min() >= 0 and scores.max() <= 1 and scores.shape == (1, 3, 12, 12)
        mean, limit = scores_and_limit(scores, 0.25, rule)
        assert np.array_equal((mean > limit[:, None, None])[0].numpy(), mask)


def test_half_way_between_both_pictures_is_a_half():
    rgb = torch.randint(0, 256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    for name in SUPERVISIONS[1:]:
        supervision = SUPERVISION[name]
        middle = (supervision.foreground(rgb) + supervision.background(rgb)) / 2
        torch.testing.assert_close(
            supervision.recover(middle, to_pixels(rgb)), torch.full((1, 3, 4, 4), 0.5)
        )


# ---- generation ----


def alpha_bar(beta_start, beta_end):
    """Stable Diffusion's schedule: betas whose roots lie on a line."""
    return np.cumprod(1 - np.linspace(beta_start**0.5, beta_end**0.5, 1000) ** 2)


def draws(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.mark.parametrize("betas", [(0.00085, 0.012), (0.0272, 0.384)])
def test_a_training_pair_follows_the_formula(betas):
    image, mask, a_bar = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), alpha_bar(*betas)
    noisy, steps, goal = ImageToMask(*betas).training_pair(image, mask, draws(0, 1, 2))
    assert len(set(steps.tolist())) == 3 and all(0 <= step < 1000 for step in steps)
    for row, step in enumerate(steps.tolist()):
        signal, rest = a_bar[step] ** 0.5, (1 - a_bar[step]) ** 0.5
        want = signal * mask[row] + rest * image[row]
        torch.testing.assert_close(noisy[row], want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            -goal[row], signal * image[row] - rest * mask[row], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_sampling_is_ddim_written_by_hand(steps):
    betas = (0.00085, 0.012)
    a_bar, image, seen = alpha_bar(*betas), randn(2, 4, 8, 8).double(), []

    def predict(latents, timestep):
        seen.append(int(timestep))
        return 0.3 * latents + torch.sin(latents + int(timestep))  # minus v

    got = ImageToMask(*betas).sample(predict, image, steps, 0)
    gap = 1000 // steps
    assert seen == [1 + gap * step for step in reversed(range(steps))]
    latents = clean = image
    for timestep in list(seen):
        now, before = a_bar[timestep], a_bar[timestep - gap] if timestep >= gap else 1.0
        velocity = -predict(latents, timestep)
        clean = now**0.5 * latents - (1 - now) ** 0.5 * velocity
        noise = now**0.5 * velocity + (1 - now) ** 0.5 * latents
        latents = before**0.5 * clean + (1 - before) ** 0.5 * noise
    torch.testing.assert_close(got, clean, rtol=1e-3, atol=1e-3)


def test_one_step_without_signal_is_the_released_models_step():
    one, several = OneStep(), ImageToMask(1.0, 1.0)
    image, mask = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    calls = []

    def predict(latents, timestep):
        calls.append((latents, int(timestep)))
        return torch.sin(latents) * 3

    assert torch.equal(several.sample(predict, image, 1, 0), one.sample(predict, image, 1, 0))
    assert torch.equal(calls[0][0], calls[1][0]) and calls[0][1] == calls[1][1] == 1
    (query, _, goal), (want_query, step, want_goal) = (
        g.training_pair(image, mask, draws(0, 1)) for g in (several, one)
    )
    assert (
        torch.equal(query, want_query) and torch.equal(goal, want_goal) and torch.equal(goal, mask)
    )
    assert step.item() == 1


def test_many_steps_without_signal_are_one_step():
    """The image stays until the last step; nothing must be divided by an alpha_bar of 0."""
    image, predict = randn(2, 4, 8, 8), lambda latents, timestep: torch.sin(latents) * 3
    assert torch.equal(ImageToMask(1.0, 1.0).sample(predict, image, 10, 0), predict(image, 1))


def test_the_papers_large_betas_whose_signal_underflows_give_numbers():
    got = ImageToMask(0.0272, 0.384).sample(
        lambda latents, timestep: torch.sin(latents), randn(2, 4, 8, 8), 10, 0
    )
    assert got.isfinite().all()


def test_noise_to_mask_sees_the_image_beside_the_noisy_mask():
    betas = (0.00085, 0.012)
    image, mask, a_bar = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), alpha_bar(*betas)
    joined, steps, goal = NoiseToMask(*betas).training_pair(image, mask, draws(0, 1))
    assert torch.equal(joined[:, :4], image)
    for row, step in enumerate(steps.tolist()):
        signal, rest = a_bar[step] ** 0.5, (1 - a_bar[step]) ** 0.5
        noise = (joined[row, 4:] - signal * mask[row]) / rest
        assert noise.std() == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(
            -goal[row], signal * noise - rest * mask[row], rtol=1e-3, atol=1e-3
        )
        assert (noise - image[row]).abs().mean() > 0.5


def test_noise_and_timestep_follow_the_generator_alone():
    for generation in (ImageToMask(0.00085, 0.012), NoiseToMask(0.00085, 0.012)):
        image, mask = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1)
        whole = generation.training_pair(image, mask, draws(5, 6, 7))
        part = generation.training_pair(image[1:], mask[1:], draws(6, 7))
        for one, other in zip(whole, part, strict=True):
            assert torch.equal(one[1:], other)
        other_seed = generation.training_pair(image, mask, draws(8, 9, 10))
        assert not torch.equal(whole[1], other_seed[1])


def test_every_query_and_member_of_an_ensemble_starts_from_its_own_noise():
    generation, starts = NoiseToMask(0.00085, 0.012), {}

    def predict(latents, timestep):
        starts.setdefault(member, latents)
        return latents[:, 4:]

    for member in (0, 1, 0):  # noqa: B007  (read in `predict`)
        generation.sample(predict, randn(2, 4, 8, 8), 2, member)
    for latents in starts.values():
        assert torch.equal(latents[:, :4], randn(2, 4, 8, 8)) and torch.equal(
            latents[0, 4:], latents[1, 4:]
        )
        assert abs(latents[0, 4:].std() - 1) < 0.15
    assert not torch.equal(starts[0][:, 4:], starts[1][:, 4:])


def test_multi_resolution_noise_has_unit_variance_and_is_white_without_strength():
    for strength in (0.0, 0.4, 0.9):
        noise = multi_resolution_noise((4, 64, 64), np.random.default_rng(0), strength)
        assert noise.std().item() == pytest.approx(1, abs=1e-4) and noise.shape == (4, 64, 64)
    smooth = [
        correlation(multi_resolution_noise((4, 64, 64), np.random.default_rng(0), s))
        for s in (0.0, 0.4, 0.9)
    ]
    assert abs(smooth[0]) < 0.02 and smooth[1] > 0.04 and 2 * smooth[1] < smooth[2]
    white = torch.from_numpy(
        np.random.default_rng(0).standard_normal((4, 64, 64), dtype=np.float32)
    )
    torch.testing.assert_close(
        multi_resolution_noise((4, 64, 64), np.random.default_rng(0), 0.0), white / white.std()
    )


def correlation(noise):
    """Of pixels that lie beside each other."""
    return float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())


def test_an_ensemble_is_the_mean_of_its_members_pictures(weight, base, pipe, picture, square_mask):
    settings = {"generation": "multi_step_noise_to_mask"}
    several = DiffewsPipeline(pipe.unet, pipe.vae, pipe.text, 64, variant_keys=settings)
    several.denoising_steps = 2
    with torch.no_grad():
        bank = several.encode_support(picture(0), square_mask())
        latents = several.encode_images(torch.zeros(1, 3, 64, 64))

        text = several.unet.encode_text(several.text["eval"])

        def predict(x, t):
            return several.method.interaction.segment(several.unet, x, t, text, bank)

        members = [
            several.method.generation.sample(predict, latents, 2, member) for member in range(3)
        ]
        several.ensemble = 3
        want = quantize(
            torch.stack([decode_latents(several.vae, member) for member in members]).mean(0)
        )
        found = several.segment(torch.zeros(1, 3, 64, 64), bank)
        assert torch.equal(found.rgb, want.float() / 255)
    assert not torch.equal(members[0], members[1])


# ---- words ----


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"interaction": "kv_fussion"},
            "interaction='kv_fussion' is not one of .*; did you mean 'kv_fusion'",
        ),
        ({"injection": "adition"}, "did you mean 'addition'"),
        ({"supervision": "white_on_blak"}, "did you mean 'white_on_black'"),
        ({"generation": "one_stop"}, "did you mean 'one_step'"),
        ({"interaction": None}, "interaction=None is not one of"),
        (
            {"beta_start": 0.0},
            "beta_start=0.0, beta_end=0.012; give 0 < beta_start <= beta_end <= 1",
        ),
        ({"beta_start": 0.5}, "beta_start=0.5, beta_end=0.012"),
        ({"beta_end": 1.5}, "beta_end=1.5"),
        ({"beta_start": float("nan")}, "beta_start=nan"),
    ],
)
def test_unknown_words_and_impossible_betas_are_refused(keys, says):
    with pytest.raises(InputError, match=says):
        Variant.of(keys)


def test_a_variant_is_read_from_a_record_and_written_to_one():
    assert Variant.of({"interaction": "qkv_fusion", "steps": 3}) == Variant(
        interaction="qkv_fusion"
    )
    assert Variant.of({}) == Variant() and Variant.of(Variant(beta_end=0.5).asdict()) == Variant(
        beta_end=0.5
    )


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("kv_fusion", "variant='kv_fusion' is no set of keys"),
        (
            {"interactoin": "qkv_fusion"},
            "unknown key 'interactoin' in variant; did you mean 'interaction'?",
        ),
        ({"beta_end": "0.3"}, "beta_end='0.3' in variant is not of type float"),
        ({"interaction": "qkv"}, "interaction='qkv' is not one of"),
    ],
)
def test_a_record_that_is_no_variant_is_refused(record, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Variant.read(record)


def test_a_record_is_read_whole():
    assert Variant.read(None) == Variant()
    assert Variant.read(Variant(injection="addition").asdict()) == Variant(injection="addition")


def test_every_word_builds_its_objects():
    for words in itertools.product(INTERACTIONS, INJECTIONS, SUPERVISIONS, GENERATIONS):
        method = Variant(*words).build()
        chosen = (method.interaction, method.injection, method.supervision)
        assert chosen == (INTERACTION[words[0]], INJECTION[words[1]], SUPERVISION[words[2]])


def test_sampling_of_keys_and_values_needs_keys_and_values():
    INTERACTION["kv_fusion"].check_bank_use("kv_sampling=")
    for interaction in ("qkv_fusion", "cross_attention"):
        with pytest.raises(InputError, match="kv_sampling= needs interaction=kv_fusion"):
            INTERACTION[interaction].check_bank_use("kv_sampling=")


def test_sampling_as_many_shots_as_there_are_keeps_every_token(unets):
    unet, method = unets["kv_fusion"], INTERACTION["kv_fusion"]
    with torch.no_grad():
        bank = method.prepare(unet, Support((features("kv_fusion", 2),)), STEP, text(), 2)
    for (_, key, value), (_, want_key, want_value) in zip(
        bank.sample(2, torch.Generator()), bank, strict=True
    ):
        assert torch.equal(key, want_key) and torch.equal(value, want_value)
