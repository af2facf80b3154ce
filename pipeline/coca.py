"""CoCa: captions for clips by open_clip's image captioner, with weights from a file.

All frames of a clip are looked at together, as in VideoCoCa (Yan et al. 2022, arXiv:2212.04979):
the image encoder sees each frame, and the attentional pooler attends to the tokens of all of them,
untrained for it. A clip of one frame is captioned as plain CoCa would. The caption is decoded
greedily over the model's forward, one step for a whole batch of clips.

    captioner = load_captioner("coca_ViT-B-32.safetensors")
    captioner.caption([frames])   # frames uint8 (t, h, w, 3)
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.settings import UserError

FRAMES_PER_CLIP = 8
MAX_TOKENS = 30
_CLIPS_PER_BATCH = 8


class Captioner:
    """A frozen CoCa model; `model_id` and `weights_sha256` say which."""

    def __init__(self, model: Any, model_id: str, weights_sha256: str) -> None:
        import open_clip

        self.model_id = model_id
        self.weights_sha256 = weights_sha256
        self._model = model.eval().requires_grad_(False)
        for tower in (model.text, model.text_decoder):
            for module in tower.modules():  # the same numbers by addmm instead of bmm: 3x faster
                if isinstance(getattr(module, "batch_first", None), bool):
                    module.batch_first = False
        self._tokenizer = open_clip.get_tokenizer(model_id)
        self._device = next(model.parameters()).device
        size = model.visual.image_size
        self._size = size if isinstance(size, tuple) else (size, size)
        self._mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=self._device)
        self._std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=self._device)

    def caption(self, clips: Sequence[np.ndarray]) -> list[str]:
        """One caption per clip, uint8 (t, h, w, 3); of long clips 8 frames, evenly spread.

        Deterministic; float rounding depends on which clips share a batch.
        """
        prepared = [self._prepare(clip) for clip in clips]
        captions = [""] * len(clips)
        for num_frames in sorted({len(each) for each in prepared}):
            chosen = [i for i, each in enumerate(prepared) if len(each) == num_frames]
            for start in range(0, len(chosen), _CLIPS_PER_BATCH):
                batch = chosen[start : start + _CLIPS_PER_BATCH]
                tokens = self._decode(self._look_at(torch.stack([prepared[i] for i in batch])))
                for index, row in zip(batch, tokens.tolist(), strict=True):
                    captions[index] = self._text(row)
        return captions

    def _prepare(self, clip: np.ndarray) -> Float[Tensor, "t c h w"]:
        """The frames that are looked at: central square, the model's size, its normalisation."""
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
            raise ValueError(f"a clip is uint8 (t, h, w, 3), not {clip.dtype} {clip.shape}")
        if len(clip) > FRAMES_PER_CLIP:
            clip = clip[np.linspace(0, len(clip) - 1, FRAMES_PER_CLIP).round().astype(int)]
        side = min(clip.shape[1:3])
        top, left = (clip.shape[1] - side) // 2, (clip.shape[2] - side) // 2
        square = clip[:, top : top + side, left : left + side]
        pixels = torch.tensor(square, dtype=torch.float32, device=self._device).movedim(3, 1)
        if tuple(pixels.shape[2:]) != self._size:
            pixels = nn.functional.interpolate(
                pixels, self._size, mode="bicubic", antialias=True
            ).clamp(0, 255)
        return (pixels / 255 - self._mean[:, None, None]) / self._std[:, None, None]

    @torch.inference_mode()
    def _look_at(self, clips: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Image embeddings of clips: the pooler sees the tokens of all frames as one sequence."""
        num_frames = clips.shape[1]

        def join_frames(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (inputs[0].unflatten(0, (-1, num_frames)).flatten(1, 2),)

        hook = self._model.visual.attn_pool.register_forward_pre_hook(join_frames)
        try:
            embeddings: Tensor = self._model(clips.flatten(0, 1))["image_embs"]
            return embeddings
        finally:
            hook.remove()

    @torch.inference_mode()
    def _decode(self, image_embeddings: Float[Tensor, "b n d"]) -> Int[Tensor, "b l"]:
        """Greedy tokens after the start token; a row that has ended repeats the end token."""
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        tokens = torch.full((len(image_embeddings), 1), start, device=self._device)
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=self._device)
        while tokens.shape[1] <= MAX_TOKENS and not ended.all():
            logits = self._model(
                None,
                tokens,
                image_latent=image_embeddings,
                image_embs=image_embeddings,
                output_labels=False,
            )["logits"][:, -1]
            logits[:, [start, self._model.pad_id]] = -torch.inf
            if tokens.shape[1] == 1:
                logits[:, end] = -torch.inf
            following = torch.where(ended, end, logits.argmax(dim=1))
            ended |= following == end
            tokens = torch.cat([tokens, following[:, None]], dim=1)
        return tokens[:, 1:]

    def _text(self, tokens: Sequence[int]) -> str:
        end = self._tokenizer.eot_token_id
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        return " ".join(self._tokenizer.decode(tokens).split())


def load_captioner(
    weights: str | Path, model: str = "coca_ViT-B-32", device: str = "cpu"
) -> Captioner:
    """The CoCa model that open_clip calls `model`, with `weights` (.safetensors, .pt or .bin).

    Raises UserError for a missing or foreign file, weights of another model, an unknown model or
    device.
    """
    path = Path(weights)
    sha256 = _sha256(path)
    import open_clip

    known = [name for name in open_clip.list_models() if name.startswith("coca_ViT")]
    if model not in known:
        raise UserError(f"coca model {model!r} is not known; give one of {', '.join(known)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device!r} is not there: torch sees no CUDA; use cpu")
    state = _read_state(path)
    network = open_clip.create_model(model, precision="fp32", device="cpu")
    _check_state(path, model, network.state_dict(), state)
    network.load_state_dict(state)
    return Captioner(network.to(device), model, sha256)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: the CoCa weights cannot be read ({error.strerror})") from None


def _read_state(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        *(OSError, ValueError, RuntimeError, EOFError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a file of weights ({reason})") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: holds no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _check_state(
    path: Path, model: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    missing, foreign = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    shapes = [
        name
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    for what, names in (("lacks", missing), ("has foreign", foreign), ("has misshapen", shapes)):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"{path}: not the weights of {model}: {what} {len(names)} tensors ({listed})"
            )
