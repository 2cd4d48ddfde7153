"""What tells a presence head a picture with its mask from another: pooled layers, and outlines."""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from diffews.models.attention import SupportBank

# the outline: Gaussian bumps over the radius, in standard deviations of the mask, and turns
RADII, WIDTH, TURNS = (0.4, 1.0, 1.6, 2.2), 0.35, 7
OUTLINE = len(RADII) * TURNS + 2  # numbers of an outline
STATISTICS = 4  # numbers that `statistics` gives
OUTLINE_SIDE = 64  # pixels at most of the mask that is measured
EMPTY = 1e-6

Signature = dict[str, Tensor]  # what a head knows of S pictures with masks: name -> [B, S, C]


# ---- what a head knows of a picture with its mask ----


def sign(layers: Iterable[tuple[str, Tensor, Tensor]], masks: Tensor, shots: int) -> Signature:
    """Pools keys and values under masks, and measures the masks' outlines.

    Args:
        layers: name, key and value [B, S*N, C] of each self-attention layer, as a bank gives them.
        masks: [B*S, H, W] in [0, 1].
        shots: S.

    Returns:
        `<layer>.key` and `<layer>.value` [B, S, C], and `outline` [B, S, D], all float32; an
        empty mask has zeros.

    """
    masks, found = masks.float(), {}
    for layer, *tensors in layers:
        tokens = tensors[0].shape[1] // shots
        weights = _shares(masks, tokens)  # [B*S, N, 1]
        total = weights.sum(1).clamp_min(EMPTY)
        for part, tensor in zip(("key", "value"), tensors, strict=True):
            rows = tensor.reshape(-1, tokens, tensor.shape[-1]).float()
            found[f"{layer}.{part}"] = ((rows * weights).sum(1) / total).unflatten(0, (-1, shots))
    return {**found, "outline": outline(masks).unflatten(0, (-1, shots))}


def _shares(masks: Tensor, tokens: int) -> Tensor:
    """Share of the mask under each of a layer's tokens: [B, H, W] -> [B, tokens, 1]."""
    height, width = masks.shape[-2:]
    factor = (height * width / tokens) ** 0.5
    size = (round(height / factor), round(width / factor))
    return F.adaptive_avg_pool2d(masks[:, None], size).flatten(2).transpose(1, 2)


def outline(masks: Tensor) -> Tensor:
    """Describes shapes whatever their place, size, turn and stretch: [B, H, W] -> [B, D].

    Each mask is moved to its centre and whitened by its covariance, in which a disc has the radius
    2. Then how its mass lies over radius and angle, as magnitudes of Fourier coefficients.
    """
    side = min(OUTLINE_SIDE, *masks.shape[-2:])
    masks = F.adaptive_avg_pool2d(masks[:, None].float(), side).flatten(1)  # [B, N]
    line = (torch.arange(side, device=masks.device) + 0.5) / side - 0.5
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)

    # centre and covariance; a pixel is no point, and adds its own
    area = masks.sum(1).clamp_min(EMPTY)
    centre = masks @ places / area[:, None]
    apart = places - centre[:, None]  # [B, N, 2]
    spread = torch.einsum("bn,bni,bnj->bij", masks, apart, apart) / area[:, None, None]
    spread = spread + torch.eye(2, device=masks.device) / (12 * side**2)

    # in axes in which the mask is as long as it is wide: how far, and in which direction
    lengths, axes = torch.linalg.eigh(spread)
    u, v = (torch.einsum("bni,bij->jbn", apart, axes) / lengths.sqrt().T[..., None]).unbind(0)
    radius = torch.hypot(u, v)
    direction = torch.complex(u, v) / radius.clamp_min(EMPTY)

    # at each radius, how the mass follows a wave of 0, 1, 2 ... turns
    bumps = torch.stack([torch.exp(-(((radius - r) / WIDTH) ** 2)) for r in RADII], 1)
    turns = direction[..., None].expand(-1, -1, TURNS).clone()  # [B, N, turns]
    turns[..., 0] = 1
    turns = turns.cumprod(-1)
    bumps = bumps * masks[:, None] / area[:, None, None]
    waves = torch.complex(bumps @ turns.real, bumps @ turns.imag).abs()

    # a ring's hole, a cross's arms; how long it is, and how large in the picture
    long = (lengths[:, :1] / lengths[:, 1:]).sqrt()
    size = (area[:, None] / side**2).sqrt()
    return torch.cat([waves.flatten(1), long, size], dim=1) * (masks.sum(1, keepdim=True) > EMPTY)


def statistics(rgb: Tensor, masks: Tensor) -> Tensor:
    """Measures what was painted: [B, 3, H, W] in [0, 1] and its mask bool [B, H, W] -> [B, 4].

    The highest score, the mean of the highest 2 %, the mean inside the mask, the mask's area.
    """
    scores, inside = rgb.float().mean(1).flatten(1), masks.flatten(1).float()
    highest = scores.topk(max(1, scores.shape[1] // 50), dim=1).values
    mean = (scores * inside).sum(1) / inside.sum(1).clamp_min(1)
    return torch.stack([highest[:, 0], highest.mean(1), mean, inside.mean(1)], dim=1)


class ListeningBank(SupportBank):
    """A bank that also keeps what the layers of the queries that read it computed themselves.

    heard: name -> key, value [B, N, C], of the last pass.
    """

    def __init__(self, bank: SupportBank) -> None:
        super().__init__(bank.shots, bank._layers, bank.signature)
        self.heard: dict[str, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the query's own key and value, and appends the support's; see `SupportBank`."""
        self.heard[layer] = key, value
        return super().extend(layer, key, value)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ListeningBank":
        # hooks of offloaded models move every argument: what the copy hears is heard here
        moved = ListeningBank(super()._map(function))
        moved.heard = self.heard
        return moved


# ---- what is compared ----


def compare(one: Signature, other: Signature, heads: Mapping[str, int]) -> Tensor:
    """Compares two signatures, one cosine for each attention head's keys and values -> [B, S, D].

    Args:
        one, other: of S pictures, and of one or S.
        heads: attention heads of each layer; which layers are compared.

    """
    found = []
    for name, count in heads.items():
        for part in ("key", "value"):
            a, b = (x[f"{name}.{part}"].unflatten(-1, (count, -1)) for x in (one, other))
            found.append(F.cosine_similarity(a, b, dim=-1))
    return torch.cat(found, dim=-1)


def compare_outlines(one: Signature, other: Signature) -> Tensor:
    """Compares the outlines of two signatures -> [B, S, D]."""
    a, b = torch.broadcast_tensors(one["outline"], other["outline"])
    return torch.cat([(a - b).abs(), a * b], dim=-1)
