"""TransNet V2: a network that sees where shots change (Soucek and Lokoc 2020, arXiv:2008.04838).

Three stages of two blocks each look at colours over 3 x 3 pixels and, at dilations of 1 to 8
frames, over time. Beside them, each frame is compared with the 50 before and behind it, by learned
features and by colour histograms. Two logits a frame: whether the change is here, and whether the
frame is part of one.

Weights are the authors' (`transnetv2-pytorch-weights.pth`), their names translated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

WINDOW_FRAMES = 100
HEIGHT, WIDTH = 27, 48
_DILATIONS = (1, 2, 4, 8)
_FILTERS = (16, 32, 64)
_COMPARED = 101  # frames: itself and 50 on each side
_HIDDEN = 1024
_SIMILARITY = 128


class TransNetV2(nn.Module):
    """Logits (b t) of the change itself and (b t) of all frames in it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [4 * filters for filters in _FILTERS]
        self.stages = nn.ModuleList(
            Stage(channels, filters) for channels, filters in zip([3, *widths], _FILTERS)
        )
        self.projection = nn.Linear(sum(widths), _SIMILARITY)
        self.by_features = nn.Linear(_COMPARED, _SIMILARITY)
        self.by_colours = nn.Linear(_COMPARED, _SIMILARITY)
        cells = (HEIGHT >> len(_FILTERS)) * (WIDTH >> len(_FILTERS))
        self.hidden = nn.Linear(2 * _SIMILARITY + widths[-1] * cells, _HIDDEN)
        self.change = nn.Linear(_HIDDEN, 1)
        self.in_change = nn.Linear(_HIDDEN, 1)

    def forward(
        self, frames: UInt8[Tensor, "b t 27 48 3"]
    ) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        features = frames.movedim(-1, 1).float() / 255
        means = []
        for stage in self.stages:
            features = stage(features)
            means.append(features.mean(dim=(3, 4)))
        looks = functional.normalize(self.projection(torch.cat(means, 1).transpose(1, 2)), dim=2)
        parts = (
            functional.relu(self.by_colours(_similarities(_colours(frames)))),
            functional.relu(self.by_features(_similarities(looks))),
            features.permute(0, 2, 3, 4, 1).flatten(2),
        )
        hidden = functional.relu(self.hidden(torch.cat(parts, 2)))
        return self.change(hidden).squeeze(2), self.in_change(hidden).squeeze(2)


class Stage(nn.Module):
    """Two blocks, the first also around the second; then half the height and width."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [DilatedBank(channels, filters), DilatedBank(len(_DILATIONS) * filters, filters)]
        )

    def forward(self, frames: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t i j"]:
        first = functional.relu(self.blocks[0](frames))
        second = functional.relu(self.blocks[1](first))
        return functional.avg_pool3d(first + second, (1, 2, 2))


class DilatedBank(nn.Module):
    """Convolutions over space, then over time at four dilations, side by side; batch norm."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.space = nn.ModuleList(
            nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
            for _ in _DILATIONS
        )
        self.time = nn.ModuleList(
            nn.Conv3d(
                2 * filters,
                filters,
                (3, 1, 1),
                dilation=(dilation, 1, 1),
                padding=(dilation, 0, 0),
                bias=False,
            )
            for dilation in _DILATIONS
        )
        self.norm = nn.BatchNorm3d(len(_DILATIONS) * filters, eps=1e-3)

    def forward(self, frames: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        branches = [time(space(frames)) for space, time in zip(self.space, self.time)]
        return self.norm(torch.cat(branches, 1))


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state with the names of this module; foreign names stay as they are."""
    return {_our_name(name): tensor for name, tensor in state.items()}


def _our_name(name: str) -> str:
    match = re.fullmatch(r"SDDCNN\.(\d)\.DDCNN\.(\d)\.(.+)", name)
    if match:
        stage, block, rest = match.groups()
        conv = re.fullmatch(r"Conv3D_([1248])\.layers\.([01])\.weight", rest)
        if conv:
            part = ("space", "time")[int(conv[2])]
            rest = f"{part}.{_DILATIONS.index(int(conv[1]))}.weight"
        return f"stages.{stage}.blocks.{block}.{re.sub('^bn', 'norm', rest)}"
    for theirs, ours in (
        ("frame_sim_layer.projection", "projection"),
        ("frame_sim_layer.fc", "by_features"),
        ("color_hist_layer.fc", "by_colours"),
        ("fc1", "hidden"),
        ("cls_layer1", "change"),
        ("cls_layer2", "in_change"),
    ):
        if name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    return name


def _colours(frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t 512"]:
    """Histograms of 8 x 8 x 8 colours, of length 1."""
    bins = (frames.int() >> 5) @ torch.tensor([64, 8, 1], dtype=torch.int32)
    bins = bins.flatten(2).long()
    counts = torch.zeros(*bins.shape[:2], 512).scatter_add_(2, bins, torch.ones(bins.shape))
    return functional.normalize(counts, dim=2)


def _similarities(vectors: Float[Tensor, "b t d"]) -> Float[Tensor, "b t 101"]:
    """Inner products of each frame's vector with those of the frames around it; 0 outside."""
    reach = _COMPARED // 2
    products = functional.pad(vectors @ vectors.transpose(1, 2), (reach, reach))
    length = vectors.shape[1]
    around = torch.arange(length)[:, None] + torch.arange(_COMPARED)
    return products.gather(2, around.expand(len(vectors), -1, -1))
