"""Feature extractors: the networks in whose features a Frechet distance is measured.

    extractor = RandomFeatures(seed=0)
    distance = frechet_distance(extractor(frames), extractor(others))     # "FD-random3d-0"

An extractor has a name and the hash of its weights, and a distance carries both. There is no FID or
FVD here: those are the distances of two particular networks, whose weights must be given.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.checkpoint import read_checkpoint
from tokenizer.settings import UserError


class Extractor(Protocol):
    """Clips to features, one row per clip or per frame."""

    name: str
    sha256: str
    """Of the weights."""
    about: str
    """What a distance in these features is good for, in a few words."""

    def __call__(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[np.ndarray, "n d"]:
        """Features of clips of any length and size, on any device."""


class RandomFeatures:
    """A three-dimensional convolutional network that has learned nothing: regression only.

    It moves when reconstructions move, so two versions of a program can be compared; which of two
    tokenizers looks better it does not know. 64 features a clip, which it sees at 32 x 32.
    """

    about = "random weights: for regression only, says nothing of quality"
    _SIDE = 32

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        shapes = ((32, 3, 3, 5, 5), (64, 32, 3, 3, 3), (64, 64, 3, 3, 3))
        self._kernels = [
            torch.randn(shape, generator=draw) * (2 / np.prod(shape[1:])) ** 0.5 for shape in shapes
        ]
        self.name = f"random3d-{seed}"
        self.sha256 = hash_of_tensors(self._kernels)

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[np.ndarray, "b 64"]:
        x = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        x = functional.adaptive_avg_pool3d(x, (x.shape[2], self._SIDE, self._SIDE))
        for stride, kernel in zip(((1, 2, 2), (2, 2, 2), (1, 2, 2)), self._kernels):
            padding = tuple(side // 2 for side in kernel.shape[2:])
            x = functional.conv3d(x, kernel.to(x.device), stride=stride, padding=padding).relu()
        return x.mean(dim=(2, 3, 4)).cpu().numpy()


class InceptionFeatures:
    """The 2,048 pooled features of torchvision's InceptionV3, one row per frame.

    `path` is a file of its state (.safetensors, or .pt and .pth without pickled code), such as
    inception_v3_google-0cc3c7bd.pth. FID is defined by another conversion of that network, so this
    distance is near to FID and not equal to it.
    """

    about = "torchvision's InceptionV3, frame by frame: near to FID, not equal to it"
    _SIDE = 299

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        from torchvision.models import inception_v3

        checkpoint = read_checkpoint(path)
        network = inception_v3(weights=None, init_weights=False, transform_input=False)
        wrong = _misfits(network.state_dict(), checkpoint.tensors)
        if wrong:
            raise UserError(f"{path}: not the weights of torchvision's InceptionV3: {wrong}")
        network.load_state_dict(checkpoint.tensors)
        network.fc = nn.Identity()
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = device
        self.sha256 = checkpoint.sha256
        self.name = f"inception_v3-{self.sha256[:8]}"

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[np.ndarray, "n 2048"]:
        x = frames.flatten(0, 1).movedim(-1, 1).to(self._device).float() / 127.5 - 1
        side = self._SIDE
        x = functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        return np.concatenate([self._network(part).cpu().numpy() for part in x.split(16)])


def hash_of_tensors(values: list[Tensor]) -> str:
    """SHA-256 (hex) of tensors, with their types and shapes."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _misfits(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What does not fit, in words, or nothing."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} is {list(found[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
