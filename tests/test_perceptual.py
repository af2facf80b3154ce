"""LPIPS from files: its definition with random weights, and files that are not what was meant."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vgg import cfgs, make_layers

from tokenizer.loss_config import LpipsFiles
from tokenizer.perceptual import Lpips, head_shapes, load_lpips, vgg_shapes
from tokenizer.settings import UserError


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random ones of the true shapes; activations keep their size from layer to layer."""
    draw = torch.Generator().manual_seed(0)
    vgg = {
        name: torch.randn(shape, generator=draw) * (2 / (9 * shape[1])) ** 0.5
        if len(shape) == 4
        else 0.1 * torch.randn(shape, generator=draw)
        for name, shape in vgg_shapes()[1].items()
    }
    heads = {name: torch.rand(shape, generator=draw) for name, shape in head_shapes().items()}
    return vgg, heads


@pytest.fixture(scope="module")
def files(weights: Any, tmp_path_factory: pytest.TempPathFactory) -> LpipsFiles:
    folder = tmp_path_factory.mktemp("lpips")
    save_file(weights[0], folder / "vgg.safetensors")
    torch.save(weights[1], folder / "heads.pth")
    return LpipsFiles(
        vgg=str(folder / "vgg.safetensors"),
        vgg_sha256=sha256(folder / "vgg.safetensors"),
        heads=str(folder / "heads.pth"),
        heads_sha256=sha256(folder / "heads.pth"),
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def clips(seed: int) -> Tensor:
    return torch.rand(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def slowly(vgg: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The distance of two pictures [3, h, w], by torchvision's own network."""
    network = make_layers(cfgs["D"])
    network.load_state_dict({name.removeprefix("features."): each for name, each in vgg.items()})
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = ((each[None] - shift) / scale for each in (a, b))
    total = torch.zeros(())
    taps = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    for place, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if place in taps:
            difference = (functional.normalize(x, dim=1) - functional.normalize(y, dim=1)) ** 2
            head = heads[f"lin{taps[place]}.model.1.weight"].view(-1, 1, 1)
            total = total + (difference[0] * head).sum(dim=0).mean()
    return total


@torch.no_grad()
def test_it_is_what_the_definition_says_frame_by_frame(weights: Any, files: LpipsFiles) -> None:
    a, b = clips(0), clips(1)
    found = load_lpips(files)(a, b)
    for clip in range(2):
        expected = [slowly(*weights, a[clip, :, t], b[clip, :, t]) for t in range(2)]
        torch.testing.assert_close(found[clip], torch.stack(expected).mean(), rtol=1e-4, atol=0)


def test_it_is_zero_for_equal_clips_and_has_a_finite_gradient(files: LpipsFiles) -> None:
    lpips = load_lpips(files)
    frames = clips(0)
    assert lpips(frames, frames).tolist() == [0, 0]
    dark = torch.full((1, 3, 1, 16, 16), -1.0, requires_grad=True)
    lpips(dark, clips(1)[:1, :, :1, :16, :16]).sum().backward()
    assert dark.grad is not None
    assert torch.isfinite(dark.grad).all()
    assert dark.grad.abs().sum() > 0


def test_its_weights_are_part_of_no_module_and_get_no_gradient(files: LpipsFiles) -> None:
    lpips = load_lpips(files)
    assert not isinstance(lpips, nn.Module)
    assert copy.deepcopy([lpips])[0] is lpips
    frames = clips(0).requires_grad_(True)
    assert not lpips(frames, clips(1)).sum().backward()  # type: ignore[func-returns-value]


def test_a_whole_file_of_torchvision_is_accepted_in_its_old_format(
    weights: Any, files: LpipsFiles, tmp_path: Path
) -> None:
    path = tmp_path / "vgg16.pth"
    state = weights[0] | {"classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    found = load_lpips(replace(files, vgg=str(path), vgg_sha256=sha256(path).upper()))
    assert isinstance(found, Lpips)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def no_file(path: Path, heads: dict[str, Tensor]) -> None:
    """Nothing is written."""


def pickled_code(path: Path, heads: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps({"lin0.model.1.weight": Hostile()}))


def a_list(path: Path, heads: dict[str, Tensor]) -> None:
    torch.save(list(heads.values()), path)


def cut_short(path: Path, heads: dict[str, Tensor]) -> None:
    torch.save(heads, path)
    path.write_bytes(path.read_bytes()[:-500])


def one_missing(path: Path, heads: dict[str, Tensor]) -> None:
    torch.save({name: each for name, each in heads.items() if "lin3" not in name}, path)


def one_more(path: Path, heads: dict[str, Tensor]) -> None:
    torch.save(heads | {"lin5.model.1.weight": torch.zeros(1)}, path)


def another_shape(path: Path, heads: dict[str, Tensor]) -> None:
    torch.save(heads | {"lin0.model.1.weight": torch.zeros(1, 32, 1, 1)}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_file, r"heads\.pth: no such file"),
        (pickled_code, "not a whole checkpoint"),
        (cut_short, "not a whole checkpoint"),
        (a_list, "holds list, not tensors by name"),
        (one_missing, r"lin3\.model\.1\.weight is missing"),
        (one_more, r"lin5\.model\.1\.weight is unknown"),
        (another_shape, r"lin0\.model\.1\.weight is \[1, 32, 1, 1\], not \[1, 64, 1, 1\]"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_error(
    write: Callable[[Path, dict[str, Tensor]], None],
    message: str,
    weights: Any,
    files: LpipsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "heads.pth"
    write(path, weights[1])
    digest = sha256(path) if path.exists() else "0" * 64
    with pytest.raises(UserError, match=message) as error:
        load_lpips(replace(files, heads=str(path), heads_sha256=digest))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_another_file_than_the_one_that_was_meant_is_refused(files: LpipsFiles) -> None:
    with pytest.raises(UserError, match=r"vgg.safetensors: its SHA-256 is .*, lpips.vgg_sha256"):
        load_lpips(replace(files, vgg_sha256="0" * 64))
    with pytest.raises(UserError, match=r"lpips\.vgg and lpips\.vgg_sha256 are required"):
        load_lpips(LpipsFiles())
    with pytest.raises(UserError, match=r"lpips\.heads and lpips\.heads_sha256 are required"):
        load_lpips(replace(files, heads_sha256=None))
