"""The tokenizer: pixels to multi-scale codes and back, and the folder that holds one.

    tokenizer = load_tokenizer("runs/demo/tokenizer")      # frozen, float32
    codes = tokenizer.encode(frames)                       # uint8 [b, t, h, w, 3] -> int64 [b, l]
    schedule = tokenizer.schedule_for(t, h, w)
    frames = tokenizer.decode(codes, schedule)

A folder has `tokenizer.json` (settings, fingerprint, what made it) and `model.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.config import TokenizerConfig, check_clip_shape
from tokenizer.losses import LossOutput, tokenizer_loss
from tokenizer.quantizer import MultiScaleQuantizer
from tokenizer.scales import Schedule
from tokenizer.settings import UserError, from_dict, to_dict

FORMAT = 1
CONFIG_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_ONLY = ("ema_count", "ema_sum", "observed", "num_observed", "is_initialised")
"""Codebook statistics that training needs and a finished tokenizer does not."""


class Tokenizer(nn.Module):
    """A causal autoencoder with a multi-scale quantizer between its halves."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = CausalAutoencoder(config.autoencoder, config.quantizer.codebook_dim)
        self.quantizer = MultiScaleQuantizer(config.quantizer)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the settings and of every weight that codes or pixels depend on."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode())
        for name, value in sorted(self.weights().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def schedule_for(self, num_frames: int, height: int, width: int) -> Schedule:
        """The scales of a clip of this shape in pixels."""
        return self.config.schedule_for(num_frames, height, width)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t h w 3"]) -> Int[Tensor, "b l"]:
        """Codes in the order of `schedule_for(t, h, w)`; UserError on any other kind of frames."""
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise UserError(
                f"frames ({frames.dtype}, shape {list(frames.shape)}) must be uint8 [b, t, h, w, 3]"
            )
        schedule = self.schedule_for(*frames.shape[1:4])
        return self.quantizer.encode(self.encode_latents(signed(frames)), schedule)

    @torch.no_grad()
    def decode(
        self, codes: Int[Tensor, "b l"], schedule: Schedule, num_scales: int | None = None
    ) -> UInt8[Tensor, "b t h w 3"]:
        """Frames of codes, from the first `num_scales` scales of each pyramid (default: all)."""
        if codes.ndim != 2 or codes.shape[1] != schedule.num_tokens:
            raise UserError(
                f"codes of shape {list(codes.shape)} do not fit the schedule: "
                f"[b, {schedule.num_tokens}] is needed"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise UserError(
                f"codes ({int(codes.min())} to {int(codes.max())}) must lie in "
                f"[0, {self.codebook_size}): they are another tokenizer's"
            )
        latents = self.quantizer.decode(codes, schedule, num_scales)
        return unsigned(self.autoencoder.decode_canonically(latents))

    @torch.no_grad()
    def encode_latents(self, frames: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """Latents before the quantizer, of frames in [-1, 1], by the canonical encoding."""
        check_clip_shape(self.config.autoencoder, *frames.shape[2:])
        return self.autoencoder.encode_canonically(frames)

    @torch.no_grad()
    def begin(self, frames: Float[Tensor, "b 3 t h w"], generator: torch.Generator) -> None:
        """Initialises from data in [-1, 1], before training: the linear path of the autoencoder by
        principal components, and the codebook by k-means of what the quantizer would be asked
        (the scales' gains if its codes are fixed)."""
        self.autoencoder.begin_linear(frames, generator)
        latents = self.autoencoder.encode(frames)
        schedule = self.schedule_for(*frames.shape[2:])
        self.quantizer.begin(latents, schedule, generator)

    def forward(
        self, frames: Float[Tensor, "b 3 t h w"], progress: float, generator: torch.Generator
    ) -> LossOutput:
        return self.training_step(frames, progress, generator)

    def training_step(
        self, frames: Float[Tensor, "b 3 t h w"], progress: float, generator: torch.Generator
    ) -> LossOutput:
        """The loss of a batch in [-1, 1] at `progress` (0 to 1) of the training.

        The codebook follows the data in every step. Unless `begin` made it, the latents pass
        unquantized until `loss.unquantized_share`, and those seen last make it. `generator` draws
        which clips are reversed and which vectors replace dead codes. All parameters always get a
        gradient. Under torch.distributed every rank must call it in every step.
        """
        settings = self.config.loss
        schedule = self.schedule_for(*frames.shape[2:])
        frames = _reversed_at_random(frames, settings.reversed_share, generator)
        latents = self.autoencoder.encode(frames)
        codebook = self.quantizer.codebook
        is_quantized = bool(codebook.is_initialised) or progress >= settings.unquantized_share
        if is_quantized and not codebook.is_initialised:
            vectors = self.quantizer(latents.detach(), schedule, quantize=False).vectors
            codebook.initialise(vectors, generator)
        quantized = self.quantizer(latents, schedule, quantize=is_quantized)
        reconstruction = self.autoencoder.decode(quantized.latents)
        output = tokenizer_loss(settings, frames, reconstruction, latents, quantized)
        if quantized.codes is None:
            codebook.observe(quantized.vectors, generator)
        else:
            restarted = codebook.update(quantized.vectors, quantized.codes, generator)
            output.terms["restarted_codes"] = restarted.to(torch.float32)
        return output

    def weights(self) -> dict[str, Tensor]:
        """The state that a finished tokenizer consists of, by name."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.rpartition(".")[2] not in TRAINING_ONLY
        }


def signed(frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t h w"]:
    """uint8 frames as the float32 in [-1, 1] that models take."""
    return frames.permute(0, 4, 1, 2, 3).to(torch.float32) / 127.5 - 1


def unsigned(frames: Float[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t h w 3"]:
    """The inverse of `signed`, clipped and rounded."""
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes the folder; a reader never sees half of it."""
    from safetensors.torch import save

    directory = Path(directory)
    description = {
        "format": FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "config": to_dict(tokenizer.config),
        "made_by": {"tessera": version("tessera"), "torch": torch.__version__},
    }
    weights = {name: value.cpu().contiguous() for name, value in tokenizer.weights().items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _publish(directory / WEIGHTS_FILE, save(weights))
        text = json.dumps(description, indent=1) + "\n"
        _publish(directory / CONFIG_FILE, text.encode())
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
    tokenizer = Tokenizer(config)
    weights = _read_weights(directory / WEIGHTS_FILE)
    _check_fit(directory / WEIGHTS_FILE, tokenizer.weights(), weights)
    tokenizer.load_state_dict(weights, strict=False)
    tokenizer.quantizer.codebook.restore()
    if tokenizer.fingerprint != description["fingerprint"]:
        raise UserError(
            f"{directory}: {WEIGHTS_FILE} and {CONFIG_FILE} do not belong together; "
            "copy both from the same tokenizer"
        )
    return tokenizer.to(device).eval().requires_grad_(False)


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
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def _publish(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _reversed_at_random(
    frames: Float[Tensor, "b c t h w"], share: float, generator: torch.Generator
) -> Float[Tensor, "b c t h w"]:
    if share == 0 or frames.shape[2] == 1:
        return frames
    drawn = torch.rand(len(frames), generator=generator, device=generator.device)
    chosen = (drawn < share).to(frames.device)
    return torch.where(chosen[:, None, None, None, None], frames.flip(2), frames)
