"""Shots by TransNet V2, with weights from a file: hard cuts and gradual transitions.

The network sees 100 frames at a time and is believed for the 50 in the middle. It sees our small
frames, made smaller: 48 x 27.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.shots.blocks import block_means
from pipeline.shots.records import Gradual, apart
from pipeline.shots.settings import ShotSettings
from pipeline.shots.transnet_network import HEIGHT, WIDTH, WINDOW_FRAMES, TransNetV2, our_names
from pipeline.shots.weights import weights_sha256
from tokenizer.settings import UserError

_STRIDE = WINDOW_FRAMES // 2
_MIN_GRADUAL = 4  # frames that belong to a change; fewer are a hard cut
_BLACK = 8.0  # levels from black or white of a frame in a fade


def detect(frames: np.ndarray, settings: ShotSettings) -> tuple[Sequence[int], Sequence[Gradual]]:
    """(first frames of shots behind hard cuts, transitions) of uint8 (n, h, w, 3) RGB frames."""
    assert settings.transnet_weights is not None
    network = _load_once(settings.transnet_weights, weights_sha256(settings.transnet_weights))
    change, in_change = probabilities(network, frames)
    threshold = settings.transnet_threshold
    graduals = []
    for start, end in _runs(in_change > threshold):
        if end - start >= _MIN_GRADUAL:
            graduals.append(Gradual(_kind(frames[start:end]), start, end))
    cuts = [end for _, end in _runs(change > threshold) if end < len(frames)]
    return apart(cuts, graduals)


def probabilities(network: TransNetV2, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n,) and (n,): that the change is behind this frame, that the frame is in one."""
    small = np.stack(
        [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
    )
    margin = (WINDOW_FRAMES - _STRIDE) // 2
    behind = margin + -len(small) % _STRIDE
    padded = np.pad(small, ((margin, behind), (0, 0), (0, 0), (0, 0)), mode="edge")
    found = []
    with torch.inference_mode():
        for start in range(0, len(padded) - WINDOW_FRAMES + 1, _STRIDE):
            window = torch.from_numpy(padded[start : start + WINDOW_FRAMES])[None]
            found.append(torch.stack(network(window))[:, 0, margin : margin + _STRIDE].sigmoid())
    both = torch.cat(found, 1)[:, : len(frames)].numpy()
    return both[0], both[1]


def load_transnet(path: str | Path) -> TransNetV2:
    """The network with the weights of a file (.safetensors, or a plain state in .pth).

    UserError for what is missing, foreign, or of other shapes.
    """
    state = our_names(_read_state(Path(path)))
    network = TransNetV2().eval().requires_grad_(False)
    expected = network.state_dict()
    for name, tensor in expected.items():
        given = state.get(name)
        if given is None or given.shape != tensor.shape:
            found = "nothing" if given is None else f"{tuple(given.shape)}"
            raise UserError(
                f"{path}: not the weights of TransNetV2: {name} must be {tuple(tensor.shape)}, "
                f"there is {found}"
            )
    if extra := sorted(state.keys() - expected.keys()):
        raise UserError(f"{path}: not the weights of TransNetV2: there is also {extra[0]}")
    network.load_state_dict(state)
    return network


@lru_cache(maxsize=1)
def _load_once(path: str, sha256: str) -> TransNetV2:
    return load_transnet(path)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights_sha256(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(OSError, ValueError, RuntimeError, EOFError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a file of weights ({reason})") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: not a file of weights: tensors by name are wanted")
    return state


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2])]


def _kind(frames: np.ndarray) -> Literal["fade", "dissolve"]:
    blocks = block_means(frames)
    away = [np.sqrt(np.square(blocks - level).mean(axis=1)).min() for level in (0, 255)]
    return "fade" if min(away) <= _BLACK else "dissolve"
