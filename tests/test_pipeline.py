"""DiffewsPipeline: the reference's predictions, forms of input, own sizes, thresholds, saving."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import diffews
from diffews import DiffewsPipeline, InputError
from diffews.data.registry import load_benchmark
from diffews.images.files import normalize
from diffews.models.weights import load_unet

FLIPS = 4  # pixels of 64 x 64 that rounding may move over the threshold


def flips(mask, other):
    assert mask.shape == other.shape
    return int((mask != other).sum())


@pytest.fixture
def bank(pipe, picture, square_mask):
    return pipe.encode_support(picture(1), square_mask())


# ---- the reference's numbers ----


@pytest.mark.parametrize(
    ("name", "fold", "shots"), [("eval_coco_fold0_1shot", 0, 1), ("eval_coco_fold3_5shot", 3, 5)]
)
@torch.no_grad()
def test_raw_predictions_are_those_of_the_reference(pipe, coco, expected, name, fold, shots):
    golden = expected(name).npz["raw"]
    data = load_benchmark("coco20i", coco, fold=fold, shots=shots, image_size=64)
    for i, want in enumerate(golden):
        episode = data[i]
        supports, masks = (
            torch.from_numpy(episode.support_images),
            torch.from_numpy(episode.support_masks),
        )
        bank = pipe.encode_support_pixels(supports, masks, shots)
        scores = pipe.segment(torch.from_numpy(episode.query_image)[None], bank).rgb
        rgb = (scores * 255).round()  # the whole numbers that were decoded
        assert rgb.shape == (1, 3, 64, 64) and torch.equal(rgb / 255, scores)
        difference = np.abs(rgb[0].permute(1, 2, 0).numpy().astype(int) - want)
        assert (
            difference.max() <= 1 and (difference > 0).mean() < 0.02
        )  # truncation on a rounding edge


def test_pictures_give_the_masks_of_the_golden_evaluation(pipe, coco, expected):
    data = load_benchmark("coco20i", coco, fold=0, shots=1, episodes=4)
    for i, episode in enumerate(data.episodes):
        supports = [
            data.benchmark.decode(support, episode.class_id) for support in episode.supports
        ]
        query = data.benchmark.decode(episode.query, episode.class_id).image
        made = pipe.encode_support([s.image for s in supports], [s.mask for s in supports])
        mask = pipe(query, made, own_size=False).masks[0]
        want = np.unpackbits(expected("eval_coco_fold0_1shot").npz["masks"][i]).reshape(64, 64)
        assert flips(mask, want.astype(bool)) <= 2


# ---- forms of input ----


def as_forms(image):
    array = np.asarray(image)
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    return {
        "PIL": image,
        "array": array,
        "array, channels first": channels_first,
        "array, a view": array[::-1][::-1],
        "tensor": torch.from_numpy(array.copy()),
        "tensor, channels first": torch.from_numpy(channels_first),
        "float array": normalize(channels_first),
        "float tensor": torch.from_numpy(normalize(array)),
        "double array": normalize(array).astype(np.float64),
    }


def test_every_form_of_picture_gives_the_same_answer(pipe, picture, bank, square_mask):
    want = pipe(picture(2), bank)
    for name, query in as_forms(picture(2)).items():
        output = pipe(query, bank)
        assert np.array_equal(output.scores[0], want.scores[0]), name
    for name, support in as_forms(picture(1)).items():
        output = pipe(picture(2), pipe.encode_support(support, square_mask()))
        assert np.array_equal(output.scores[0], want.scores[0]), name


def test_a_float_picture_of_another_size_is_resized_much_like_a_file(pipe, picture, bank):
    image, other = picture(2, 90, 70), picture(3, 90, 70)
    want, resized = pipe(image, bank), pipe(normalize(np.asarray(image)), bank)
    assert resized.masks[0].shape == (70, 90)
    rounding = np.abs(
        resized.scores[0] - want.scores[0]
    ).mean()  # PIL resizes in 8 bits; random weights exaggerate it
    assert rounding < np.abs(pipe(other, bank).scores[0] - want.scores[0]).mean() / 4


def test_grey_and_palette_pictures_are_taken_as_rgb(pipe, picture, bank):
    for mode in ("L", "P", "CMYK", "RGBA"):
        converted = picture(2).convert(mode)
        want = pipe(converted.convert("RGB"), bank)
        assert np.array_equal(pipe(converted, bank).masks[0], want.masks[0]), mode


def test_every_form_of_mask_makes_the_same_bank(pipe, picture, square_mask, bank):
    mask = square_mask()
    forms = {
        "0 and 1": mask.astype(np.uint8),
        "0 and 255": mask.astype(np.uint8) * 255,
        "float": mask.astype(np.float32),
        "int64": mask.astype(np.int64),
        "tensor": torch.from_numpy(mask),
        "PIL L": Image.fromarray(mask.astype(np.uint8) * 255),
        "PIL 1": Image.fromarray(mask),
    }
    want = {layer: key for layer, key, _ in bank}
    for name, form in forms.items():
        for layer, key, _ in pipe.encode_support(picture(1), form):
            assert torch.equal(key, want[layer]), name


def test_shots_come_as_a_list_or_as_one_array(pipe, picture, square_mask):
    pictures = [picture(i) for i in range(4)]
    masks = [np.roll(square_mask(), 5 * i, 0) for i in range(4)]
    for shots in (2, 3, 4):  # three masks of one array look like the channels of a picture
        listed = pipe.encode_support(pictures[:shots], masks[:shots])
        stacked = pipe.encode_support(np.stack(pictures[:shots]), np.stack(masks[:shots]))
        assert (listed.shots, listed.batch) == (stacked.shots, stacked.batch) == (shots, 1)
        for (_, key, _), (_, other, _) in zip(listed, stacked, strict=True):
            assert torch.equal(key, other)


def test_a_call_with_support_pictures_equals_a_call_with_their_bank(
    pipe, picture, square_mask, bank
):
    want = pipe(picture(2), bank)
    got = pipe(picture(2), support_images=picture(1), support_masks=square_mask())
    assert np.array_equal(got.scores[0], want.scores[0])


def test_one_bank_serves_many_queries(pipe, picture, bank):
    queries = [picture(2), picture(3, 80, 50), picture(2)]
    output = pipe(queries, bank)
    assert (
        isinstance(output, diffews.DiffewsOutput) and len(output.masks) == len(output.scores) == 3
    )
    for query, mask in zip(queries, output.masks, strict=True):
        assert np.array_equal(mask, pipe(query, bank).masks[0])


def test_a_batch_of_queries_is_an_array_too(pipe, picture, bank):
    queries = [picture(2), picture(3)]
    stacked = pipe(np.stack(queries), bank)
    for mask, want in zip(stacked.masks, pipe(queries, bank).masks, strict=True):
        assert np.array_equal(mask, want)


def test_no_query_gives_no_mask(pipe, bank):
    output = pipe([], bank)
    assert output.masks == [] and output.scores == []


def test_each_query_with_its_own_support_equals_separate_calls(pipe, picture, square_mask):
    queries = [picture(2), picture(3, 90, 70), picture(4)]
    images = [
        [picture(10), picture(11)],
        [picture(12), picture(13, 50, 60)],
        [picture(14), picture(15)],
    ]
    masks = [[square_mask(*image.size) for image in support] for support in images]
    sets = pipe.encode_support(images, masks)
    assert (sets.batch, sets.shots) == (3, 2)
    alone = [
        pipe(query, pipe.encode_support(*s))
        for query, *s in zip(queries, images, masks, strict=True)
    ]
    for batch in (1, 2, 3):
        together = pipe(queries, sets, batch=batch)
        for i in range(3):
            assert flips(together.masks[i], alone[i].masks[0]) <= 2 * FLIPS, (
                batch,
                i,
            )  # own sizes up to 90 x 70
            np.testing.assert_allclose(together.scores[i], alone[i].scores[0], atol=0.02)


def test_a_batch_gives_what_single_queries_give(pipe, picture, bank):
    queries = [picture(i) for i in range(20, 25)]
    single, batched = pipe(queries, bank), pipe(queries, bank, batch=3)
    for i in range(5):
        assert flips(single.masks[i], batched.masks[i]) <= FLIPS
        np.testing.assert_allclose(batched.scores[i], single.scores[i], atol=0.01)


# ---- output ----


def test_masks_have_each_querys_own_size(pipe, picture, bank):
    sizes = [(64, 64), (100, 40), (33, 77)]
    output = pipe([picture(2, *size) for size in sizes], bank)
    for (width, height), mask, score in zip(sizes, output.masks, output.scores, strict=True):
        assert mask.shape == score.shape == (height, width)
        assert mask.dtype == bool and score.dtype == np.float32
        assert score.min() >= 0 and score.max() <= 1
        assert 0 < mask.mean() < 1  # random weights, but not a constant answer


def test_masks_at_the_working_size_on_request(pipe, picture, bank):
    query = picture(2, 100, 40)
    assert pipe(query, bank, own_size=False).masks[0].shape == (64, 64)
    assert pipe(query, bank, own_size=False, image_size=32).masks[0].shape == (32, 32)


def decoded(pipe, query, bank):
    pixels = normalize(
        np.asarray(query.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    )
    return pipe.segment(torch.from_numpy(pixels)[None], bank).rgb  # [1, 3, 64, 64]


@pytest.mark.parametrize("size", [(64, 64), (100, 40)])
@torch.no_grad()
def test_scores_and_thresholds_at_the_querys_own_size(pipe, picture, bank, size):
    query = picture(2, *size)
    rgb = decoded(pipe, query, bank)
    peaks = {"reference": rgb.max(), "paper": rgb.mean(1).max(), "absolute": 1}  # before the resize
    own = (
        torch.nn.functional.interpolate(rgb, size=size[::-1], mode="bilinear")
        if size != (64, 64)
        else rgb
    )
    score = own.mean(1)[0].numpy()
    for rule, peak in peaks.items():
        output = pipe(query, bank, threshold=0.4, threshold_rule=rule)
        np.testing.assert_allclose(output.scores[0], score, atol=1e-6)
        assert flips(output.masks[0], score > 0.4 * float(peak)) <= 1, rule
        assert output.masks[0].any() and not output.masks[0].all(), rule


def test_a_higher_threshold_never_adds_pixels(pipe, picture, bank):
    masks = [pipe(picture(2), bank, threshold=t).masks[0] for t in (0.1, 0.3, 0.5, 0.9)]
    for lower, higher in zip(masks, masks[1:], strict=False):
        assert not (higher & ~lower).any()
    assert masks[0].sum() > masks[-1].sum()


def test_floats_without_a_negative_value_are_taken_as_diffusers_have_them(pipe, picture):
    array = np.asarray(picture(1)).astype(np.float32) / 255
    mask = np.ones((64, 64), bool)
    mask[:32] = False
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        bank = pipe.encode_support(array, mask)
    masks = pipe([picture(2), picture(3)], bank).masks
    assert masks[0].any()
    wanted = pipe([picture(2), picture(3)], pipe.encode_support(array * 2 - 1, mask)).masks
    assert all(flips(*pair) <= FLIPS for pair in zip(masks, wanted, strict=True))


def test_a_photo_is_turned_and_its_drawn_mask_with_it(pipe, picture, square_mask, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored, mask = picture(1, 80, 60), Image.fromarray(square_mask(80, 60)).convert("1")
    stored.save(tmp_path / "a.png", exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    wanted = pipe.encode_support(upright, mask.transpose(Image.Transpose.ROTATE_270))
    with pytest.warns(UserWarning, match="as stored"):
        bank = pipe.encode_support(tmp_path / "a.png", mask)
    found = [pipe(picture(2), one).scores[0] for one in (bank, wanted)]
    assert np.array_equal(*found)


def test_a_mask_that_marks_nothing_is_refused_with_both_sizes(pipe, picture):
    mask = np.zeros((640, 640), bool)
    with pytest.raises(InputError, match="marks no pixel"):
        pipe.encode_support(picture(1, 640, 640), mask)
    mask[1, 1] = True
    with pytest.raises(InputError, match="image_size=64 .1 at 640 x 640"):
        pipe.encode_support(picture(1, 640, 640), mask, image_size=64)


def test_good_input_warns_of_nothing(pipe, picture, square_mask):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(picture(2, 70, 60), support_images=[picture(1)], support_masks=[square_mask()])


# ---- bad input ----


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.zeros((30, 64)), r"support mask of size \(30, 64\) for an image of size \(64, 64\)"),
        (np.full((64, 64), 2), "support mask holds the values 2; give bool"),
        (np.arange(64 * 64).reshape(64, 64) % 3, "holds the values 0, 1, 2"),
        (np.zeros((64, 64, 3)), "pair|one channel"),
        (np.zeros((0, 0)), "size"),
    ],
)
def test_a_support_mask_that_does_not_fit_is_refused(pipe, picture, mask, says):
    with pytest.raises(InputError, match=says):
        pipe.encode_support(picture(1), mask)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (np.zeros((64, 64), np.uint8), "a picture of shape"),
        (np.zeros((64, 64, 4), np.uint8), "a picture of shape"),
        (np.zeros((64, 64, 3), np.int64), "a picture of int64"),
        (
            np.full((64, 64, 3), 200.0),
            r"a picture of float64 in \[200.0, 200.0\]; give uint8 or float in \[-1, 1\]",
        ),
        (np.full((64, 64, 3), np.nan), r"float in \[-1, 1\]"),
    ],
)
def test_a_query_that_is_no_picture_is_refused(pipe, bank, query, says):
    with pytest.raises(InputError, match=says):
        pipe(query, bank)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "either a bank or support_images"),
        ({"support_masks": 1}, "either a bank or support_images"),
        ({"support_images": 1}, "support_images without support_masks"),
        ({"bank": 1, "support_images": 1, "support_masks": 1}, "either a bank or support_images"),
        ({"bank": 1, "batch": 0}, "batch=0 must be at least 1"),
        ({"bank": 1, "threshold": 1.0}, "threshold=1.0 is not in"),
        ({"bank": 1, "threshold_rule": "none"}, "threshold_rule='none' is not one of"),
        ({"bank": 1, "image_size": 60}, "image_size=60 is not a multiple of 8"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(pipe, picture, square_mask, bank, arguments, says):
    real = {"bank": bank, "support_images": picture(1), "support_masks": square_mask()}
    arguments = {name: real.get(name, value) for name, value in arguments.items()}
    with pytest.raises(InputError, match=says):
        pipe(picture(2), **arguments)


def test_supports_that_do_not_pair_are_refused(pipe, picture, square_mask):
    mask = square_mask()
    for images, masks, says in (
        ([], [], "no support image"),
        ([picture(1), picture(2)], [mask], "2 support images do not pair with 1 masks"),
        ([picture(1)], [mask, mask], "1 support images do not pair with 2 masks"),
        ([[picture(1)], [picture(2)]], [[mask], []], "2 support images do not pair with 1 masks"),
        ([[picture(1)], [picture(2)] * 2], [[mask], [mask] * 2], "same number of shots"),
    ):
        with pytest.raises(InputError, match=says):
            pipe.encode_support(images, masks)


def test_queries_that_do_not_pair_with_support_sets_are_refused(pipe, picture, square_mask):
    sets = pipe.encode_support([[picture(1)], [picture(2)]], [[square_mask()], [square_mask()]])
    with pytest.raises(InputError, match="3 queries for a bank of 2 support sets"):
        pipe([picture(3)] * 3, sets)


def test_pickled_weights_of_a_saved_pipeline_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "saved" / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(InputError, match=r"unet.*\.bin is a pickle"):
        DiffewsPipeline.from_pretrained(tmp_path / "saved")


def test_parts_that_do_not_belong_together_are_refused(pipe):
    with pytest.raises(InputError, match="empty prompt"):
        DiffewsPipeline(pipe.unet, pipe.vae)
    text = {key: torch.zeros(1, 2, 7) for key in ("eval", "train")}
    with pytest.raises(InputError, match="text of 32 channels, the base makes 7"):
        DiffewsPipeline(pipe.unet, pipe.vae, text)
    other = AutoencoderKL(latent_channels=3, block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(InputError, match="4 latent channels, the VAE makes 3"):
        DiffewsPipeline(pipe.unet, other, pipe.text)


# ---- save and load ----


def test_a_saved_pipeline_gives_the_same_masks(pipe, picture, bank, square_mask, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiffewsPipeline" and index["image_size"] == 64
    for part in ("unet/config.json", "vae/config.json", "text.safetensors"):
        assert (tmp_path / part).is_file()

    again = DiffewsPipeline.from_pretrained(tmp_path)
    assert again.config.image_size == 64
    want = pipe([picture(2), picture(3, 80, 50)], bank)
    got = again([picture(2), picture(3, 80, 50)], again.encode_support(picture(1), square_mask()))
    for i in range(2):
        assert np.array_equal(got.masks[i], want.masks[i])
        assert np.array_equal(got.scores[i], want.scores[i])


def test_a_saved_pipeline_loads_in_another_precision(pipe, picture, square_mask, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = DiffewsPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    output = half(picture(2), support_images=picture(1), support_masks=square_mask())
    want = pipe(picture(2), support_images=picture(1), support_masks=square_mask())
    assert np.abs(output.scores[0] - want.scores[0]).mean() < 0.1


def test_a_pipeline_says_512_unless_told(pipe):
    assert DiffewsPipeline(pipe.unet, pipe.vae, pipe.text).config.image_size == 512


@torch.no_grad()
def test_latents_are_the_posteriors_mean_scaled(pipe, picture):
    pixels = torch.from_numpy(normalize(np.asarray(picture(1)).transpose(2, 0, 1)))[None]
    latents = pipe.encode_images(pixels)
    mean = pipe.vae.encode(pixels).latent_dist.mean
    assert torch.equal(latents, 0.18215 * mean)
    assert torch.equal(latents, pipe.encode_images(pixels))  # and no sample of it


def test_pipe_and_unet_agree_on_the_class(weight):
    assert type(load_unet(weight / "unet" / "unet", torch.float32)) is diffews.DiffewsUNet


def test_a_query_whose_picture_is_not_finite_is_no_black_mask(pipe, monkeypatch):
    image, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.uint8)
    bank = pipe.encode_support(image, mask)
    monkeypatch.setattr(
        "diffews.pipeline.decode_latents",
        lambda vae, latents: torch.full((1, 3, 64, 64), float("inf")),
    )
    for call in (lambda: pipe([image] * 2, bank), lambda: pipe.label(image, [bank])):
        with pytest.raises(InputError, match=r"query 0: .*float32.* not finite"):
            call()
