"""A tokenizer's folder: `tokenizer.json` (settings, fingerprint, what made it) and safetensors.

    save_tokenizer(tokenizer, "runs/demo/tokenizer")
    tokenizer = load_tokenizer("runs/demo/tokenizer")      # frozen, eval mode, float32

What does not fit is refused, never loaded in part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer
from tokenizer.settings import UserError, from_dict, to_dict
from tokenizer.versions import own_version

FORMAT = 1
CONFIG_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"


def save_tokenizer(
    tokenizer: Tokenizer, directory: str | Path, source: Mapping[str, str] | None = None
) -> None:
    """Writes the folder; a reader never sees half of it. `source`: what its weights came from."""
    from safetensors.torch import save

    directory = Path(directory)
    description = {
        "format": FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "config": to_dict(tokenizer.config),
        "made_by": {"tessera": own_version(), "torch": torch.__version__, **(source or {})},
    }
    weights = {name: value.cpu().contiguous() for name, value in tokenizer.weights().items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        publish(directory / WEIGHTS_FILE, save(weights))
        text = json.dumps(description, indent=1) + "\n"
        publish(directory / CONFIG_FILE, text.encode())
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error})") from None


def load_tokenizer(directory: str | Path, device: str | torch.device = "cpu") -> Tokenizer:
    """The tokenizer in a folder, frozen, in eval mode and float32.

    Raises UserError when the folder or a file is missing or damaged, or when weights do not fit the
    settings or the fingerprint.
    """
    directory = Path(directory)
    description = read_description(directory)
    config = from_dict(TokenizerConfig, description["config"], str(directory / CONFIG_FILE))
    weights = _read_weights(directory / WEIGHTS_FILE)
    _check_fit(directory / WEIGHTS_FILE, _expected_weights(config), weights)
    tokenizer = Tokenizer(config)
    place_weights(tokenizer, weights)
    if tokenizer.fingerprint != description["fingerprint"]:
        raise UserError(
            f"{directory}: {WEIGHTS_FILE} and {CONFIG_FILE} do not belong together; "
            "copy both from the same tokenizer"
        )
    return tokenizer.to(device).eval().requires_grad_(False)


def find_tokenizer(path: str | Path) -> Path:
    """`path`, or the tokenizer in it when it is a dataset's or a run's folder."""
    path = Path(path)
    inside = path / "tokenizer"
    return inside if not (path / CONFIG_FILE).is_file() and inside.is_dir() else path


def place_weights(tokenizer: Tokenizer, weights: Mapping[str, Tensor]) -> None:
    """Puts a complete set of weights in place of a new tokenizer's."""
    tokenizer.load_state_dict(weights, strict=False)
    tokenizer.quantizer.codebook.restore()


def read_description(directory: Path) -> dict[str, Any]:
    """What `tokenizer.json` says, its keys checked."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{directory}: no tokenizer here ({CONFIG_FILE} is missing); "
            "train one with `tessera tokenizer train`"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        found = description["format"]
        if not isinstance(description["config"], dict) or not isinstance(
            description["fingerprint"], str
        ):
            raise ValueError("config must be a section and fingerprint text")
        if not isinstance(description.get("made_by", {}), dict):
            raise ValueError("made_by must be a section")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error!r}); copy the tokenizer again") from None
    if found != FORMAT:
        raise UserError(f"{path}: format {found!r} is unknown; this version reads format {FORMAT}")
    return description


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; copy the tokenizer again") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); copy the tokenizer again") from None


@lru_cache(maxsize=16)
def _expected_weights(config: TokenizerConfig) -> dict[str, Tensor]:
    """Names, shapes and types, without memory: settings may ask for more than there is."""
    with torch.device("meta"):
        return Tokenizer(config).weights()


def _check_fit(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} is {value.dtype} {list(value.shape)} instead of "
        f"{expected[name].dtype} {list(expected[name].shape)}"
        for name, value in found.items()
        if name in expected
        and (value.shape != expected[name].shape or value.dtype != expected[name].dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{path}: does not fit {CONFIG_FILE}: {'; '.join(wrong[:3])}{more}; "
            "copy both from the same tokenizer"
        )


def publish(path: Path, content: bytes) -> None:
    """Writes aside, then renames: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
