"""What the study runs, and what the paper says of it: no code, only lists."""

from dataclasses import dataclass
from pathlib import Path

from diffews.variants import INJECTIONS

# ---- what is run ----

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weight" / "tiny"
STEPS, SEEDS, EPISODES = 400, (0, 1, 2), 600
VARIANTS = {  # name -> what differs from the released model
    **{f"{i}-{j}": {"interaction": i, "injection": j}
       for i in ("kv_fusion", "cross_attention") for j in INJECTIONS},
    "qkv_fusion-concatenation": {"interaction": "qkv_fusion"},
    **{name: {"supervision": name}
       for name in ("real_foreground", "black_foreground", "mask_over_image")},
    "image_to_mask": {"generation": "multi_step_image_to_mask"},
    "image_to_mask-large_beta": {
        "generation": "multi_step_image_to_mask", "beta_start": "0.0272", "beta_end": "0.384",
    },
    "noise_to_mask": {"generation": "multi_step_noise_to_mask"},
}  # fmt: skip
EVALUATED = {"noise_to_mask": ["ensemble=4"]}  # keys of the evaluation
SWEEP = [
    "relative_thresholds=0.1,0.2,0.25,0.3,0.35,0.4,0.5",
    "absolute_thresholds=0.05,0.1,0.15,0.2,0.25,0.3,0.4",
]
SHIPPED = {  # evaluations of the shipped weights: name -> keys
    "thresholds": ["shots=1", *SWEEP],
    **{f"shots{n}": [f"shots={n}", "drawn_shots=10"] for n in (1, 5, 10)},
    **{f"shots{n}-sampled": [f"shots={n}", "drawn_shots=10", "kv_sampling=1"] for n in (5, 10)},
}

# ---- what the paper says ----

DEFAULT = "kv_fusion-concatenation"
DEFAULT_THRESHOLD = "relative 0.25"
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "cannot be told", "-"


@dataclass(frozen=True)
class Claim:
    """What the paper says of two runs: `first` lies above, below or alike `second`; or nothing."""

    first: str
    second: str
    expected: str  # "above", "below", "alike"; "" where the paper says nothing
    paper: str = ""  # its figures, as a cell of the table


LABELS = {
    **{f"{i}-{j}": f"{a}, {b}"
       for i, a in (("kv_fusion", "KV fusion"), ("cross_attention", "cross-attention"))
       for j, b in (("concatenation", "concatenation"),
                    ("multiplication_rgb", "multiplication on RGB"),
                    ("multiplication_latent", "multiplication on latent"),
                    ("attention_mask", "attention mask"), ("addition", "addition"))},
    "qkv_fusion-concatenation": "QKV fusion, concatenation",
    "real_foreground": "real foreground on black",
    "black_foreground": "black foreground on image",
    "mask_over_image": "mask over image",
    "image_to_mask": "image to mask, small betas",
    "image_to_mask-large_beta": "image to mask, large betas",
    "noise_to_mask": "noise to mask",
    **{f"shots{n}": f"{n}-shot plain" for n in (1, 5, 10)},
    **{f"shots{n}-sampled": f"{n}-shot sampled" for n in (5, 10)},
}  # fmt: skip
OF_DEFAULT = {
    "interaction": LABELS[DEFAULT],
    "supervision": "white on black",
    "generation": "one step",
}
NUMBERS = {  # the paper's, on COCO-20i fold 0, 1-shot
    DEFAULT: "46.64; best in figure 2",
    "kv_fusion-multiplication_rgb": "33.12",
    "kv_fusion-multiplication_latent": "32.14",
    "qkv_fusion-concatenation": "46.61",
    "noise_to_mask": "15.2",
    "image_to_mask": "+4.7 to noise to mask",
    "image_to_mask-large_beta": "another +23.3",
}
STUDIES = {  # variants of each study, the default first
    "interaction": [name for name, keys in VARIANTS.items() if "interaction" in keys],
    "supervision": [DEFAULT, "real_foreground", "black_foreground", "mask_over_image"],
    "generation": [DEFAULT, "image_to_mask-large_beta", "image_to_mask", "noise_to_mask"],
}
TITLES = {
    "interaction": "Interaction and injection (figure 2, tables 4 and 5)",
    "supervision": "Supervision (figure 3)",
    "generation": "Generation (figure 4)",
    "thresholds": "Threshold (table 3)",
    "shots": "Shots, and sampling of support keys and values (table 6)",
}
NOTES = {
    "interaction": "The paper's figures are of COCO-20i fold 0. They cannot be compared with ours "
    "in height, only in order. Where it prints none, it says that the default is best.",
    "supervision": "The paper prints no figures here. It says that white on black is best.",
    "generation": "The paper says that one step is best. Noise to mask is evaluated as the mean of "
    "4 predictions; small betas are 0.00085 to 0.012, large ones 0.0272 to 0.384.",
    "thresholds": "The shipped weights of fold 0, not trained here, on the same episodes. There is "
    "one model, so the interval is over episodes only. The paper finds 0.25 of the maximum best of "
    "the thresholds that it lists.",
    "shots": "The shipped weights of fold 0, which were trained with one shot. All rows ask the "
    "same queries; the interval is over episodes only. Sampled: as many support keys and values as "
    "one shot has. The paper's figures are of its in-context model on COCO, sampled down to the "
    "number of shots of its training.",
}
FURTHER = {  # claims that are not about the default
    "interaction": [
        Claim(
            "kv_fusion-multiplication_rgb",
            "kv_fusion-multiplication_latent",
            "above",
            "33.12 and 32.14",
        )
    ],
    "supervision": [],
    "generation": [
        Claim("image_to_mask-large_beta", "image_to_mask", "above", "+23.3"),
        Claim("image_to_mask", "noise_to_mask", "above", "+4.7"),
    ],
}
PAPER_THRESHOLDS = {
    **{
        f"relative {t}": f"{v}"
        for t, v in ((0.2, 47.56), (0.25, 47.69), (0.3, 47.48), (0.35, 47.4), (0.4, 47.11))
    },
    **{
        f"absolute {t}": f"{v}"
        for t, v in ((0.1, 46.64), (0.15, 47.21), (0.2, 46.91), (0.25, 46.53), (0.3, 46.0))
    },
}
SHOT_CLAIMS = [
    Claim("shots5-sampled", "shots5", "above", "74.7 and 72.2"),
    Claim("shots10-sampled", "shots10", "above", "73.4 and 70.1"),
    Claim("shots5", "shots1", "above", "72.2 and 71.3"),
    Claim("shots10", "shots5", "below", "70.1 and 72.2"),
]


def label(name: str) -> str:
    """Returns the words for a run in tables and in the plot."""
    return LABELS.get(name, name)


def variant_claims(study: str) -> list[Claim]:
    """What the paper says of each of a study's variants against the default."""
    names = [name for name in STUDIES[study] if name != DEFAULT]
    return [
        Claim(
            name,
            DEFAULT,
            "alike" if name.startswith("qkv") else "below",
            NUMBERS.get(name, "below"),
        )
        for name in names
    ]


def threshold_claims() -> list[Claim]:
    """What the paper says of each threshold of the sweep against the default's."""
    swept = [word.partition("=") for word in SHIPPED["thresholds"] if "thresholds=" in word]
    names = [
        f"{key.split('_')[0]} {float(value):g}"
        for key, _, values in swept
        for value in values.split(",")
    ]
    papers = [(name, PAPER_THRESHOLDS.get(name)) for name in names if name != DEFAULT_THRESHOLD]
    return [
        Claim(name, DEFAULT_THRESHOLD, "below" if paper else "", paper or MISSING)
        for name, paper in papers
    ]
