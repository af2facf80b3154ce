"""LPIPS: the distance of two pictures in the features of VGG-16 (Zhang et al. 2018).

    lpips = load_lpips(LpipsFiles(vgg="vgg16.pth", vgg_sha256="397923af...", ...))
    distance = lpips(frames, reference)              # float [b, c, t, h, w] in [-1, 1] -> [b]

The weights are not ours to ship. `vgg` is a state dict of VGG-16 in torchvision's names (its
classifier may be there and is left out), `heads` the five linear heads in the names of LPIPS 0.1;
each is a .safetensors or .pth file and is used only when its SHA-256 is the one that was asked for.
Random features would be another distance, so without files there is none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tokenizer.checkpoint import read_checkpoint
from tokenizer.loss_config import LpipsFiles
from tokenizer.settings import UserError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of VGG-16's convolutions; a maximum over 2 x 2 pixels stands between stages."""

SMALLEST_SIDE = 2 ** (len(STAGES) - 1)
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)
_LEAST = 1e-10


class Lpips:
    """The distance of clips, frame by frame, with frozen float32 weights on one device.

    It is no module: its weights are part of no checkpoint. `convolutions` are (weight, bias) in
    order, `heads` one weight per channel of each stage's last layer.
    """

    def __init__(
        self,
        convolutions: list[tuple[Float[Tensor, "o i 3 3"], Float[Tensor, " o"]]],
        heads: list[Float[Tensor, "1 c 1 1"]],
    ) -> None:
        self._convolutions = convolutions
        self._heads = heads
        device = heads[0].device
        self._mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
        self._deviation = torch.tensor(_DEVIATION, device=device).view(3, 1, 1)

    def __deepcopy__(self, memo: object) -> Lpips:
        """Itself: copies of what uses it share its weights, which never change."""
        return self

    def __call__(
        self, frames: Float[Tensor, "b 3 t h w"], reference: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, " b"]:
        """Mean distance of the frames of each clip, at least 0; see `SMALLEST_SIDE`."""
        with torch.autocast(frames.device.type, enabled=False):
            pairs = zip(self.features(frames), self.features(reference), self._heads)
            stages = [
                functional.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
                for a, b, head in pairs
            ]
            return torch.stack(stages).sum(dim=0).view(len(frames), -1).mean(dim=1)

    def features(self, frames: Float[Tensor, "b 3 t h w"]) -> list[Float[Tensor, "n c h w"]]:
        """The last activations of each stage, of length one over their channels."""
        x = (frames.float().movedim(2, 1).flatten(0, 1) - self._mean) / self._deviation
        convolutions = iter(self._convolutions)
        found = []
        for index, stage in enumerate(STAGES):
            x = functional.max_pool2d(x, 2) if index else x
            for _ in stage:
                weight, bias = next(convolutions)
                x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
            found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _LEAST))
        return found


def load_lpips(files: LpipsFiles, device: str | torch.device = "cpu") -> Lpips:
    """The distance of the named files.

    UserError when one is missing, no file of tensors, not the one that was meant, or of another
    shape.
    """
    names, convolutions = vgg_shapes()
    vgg = _read("lpips.vgg", files.vgg, files.vgg_sha256, convolutions, ignored="classifier.")
    heads = _read("lpips.heads", files.heads, files.heads_sha256, head_shapes())
    vgg, heads = (
        {name: tensor.to(device, torch.float32, copy=True) for name, tensor in each.items()}
        for each in (vgg, heads)
    )
    return Lpips(
        [(vgg[f"{name}.weight"], vgg[f"{name}.bias"]) for name in names],
        [heads[name] for name in head_shapes()],
    )


def vgg_shapes() -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """torchvision's names of the convolutions in order, and every tensor's shape.

    It numbers convolutions, activations and maxima in one row.
    """
    names: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    place, before = 0, 3
    for stage in STAGES:
        for width in stage:
            names.append(f"features.{place}")
            shapes[f"features.{place}.weight"] = (width, before, 3, 3)
            shapes[f"features.{place}.bias"] = (width,)
            place, before = place + 2, width
        place += 1
    return names, shapes


def head_shapes() -> dict[str, tuple[int, ...]]:
    """The names of the heads in LPIPS 0.1, in order, and their shapes."""
    return {f"lin{index}.model.1.weight": (1, s[-1], 1, 1) for index, s in enumerate(STAGES)}


def _read(
    key: str,
    file: str | None,
    sha256: str | None,
    shapes: dict[str, tuple[int, ...]],
    ignored: str | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file whose bytes have this SHA-256, exactly those of `shapes`."""
    if file is None or sha256 is None:
        raise UserError(
            f"{key} and {key}_sha256 are required: LPIPS needs the file of its weights and the "
            "SHA-256 that says which one is meant"
        )
    checkpoint = read_checkpoint(file)
    if checkpoint.sha256 != sha256.lower():
        raise UserError(f"{file}: its SHA-256 is {checkpoint.sha256}, {key}_sha256 says {sha256}")
    tensors = checkpoint.tensors
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    wrong += [
        f"{name} is unknown"
        for name in tensors
        if name not in shapes and not (ignored and name.startswith(ignored))
    ]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{file}: not the weights of LPIPS: {'; '.join(wrong[:3])}{more}")
    return {name: tensors[name] for name in shapes}
