"""Tiles: frames larger than memory allows, encoded and decoded square by square, without seams.

A tile is read with a halo of what its convolutions see around it, and only its core is kept, so
tiles give what the whole frame gives. The quantizer then sees the whole grid: its coarse scales
speak of the whole frame.

    latents = encode_in_tiles(autoencoder, frames, tile=256)      # a clip, tile after tile
    step = tiled_encoder(autoencoder, tile=256)                   # a stream, piece after piece
    latents, past = step(piece, past)

It needs a norm that sees one position only (`autoencoder.norm: rms`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoder3d import CausalAutoencoder
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.causal import Past
from tokenizer.image import ImageAutoencoder

Autoencoder = CausalAutoencoder | ImageAutoencoder
Step = Callable[[Tensor, Past], tuple[Tensor, Past]]
"""The next piece of a stream and its past to its output and the new past."""


def encoder_halo(config: AutoencoderConfig) -> int:
    """Latent cells around a tile that its latents depend on: the receptive field, rounded up.

    From the latents back to the pixels: a 3-wide convolution sees one cell more on each side, and
    the cell at i of one with stride 2 sees those at 2 i - 1 to 2 i + 1.
    """
    reach = 1
    for index in reversed(range(len(config.channels))):
        reach += config.encoder_blocks[index]
        if index > 0:
            reach = reach * config.halvings[index - 1][1] + 1
    return -(-reach * config.patch // config.spatial_stride)


def decoder_halo(config: AutoencoderConfig) -> int:
    """Latent cells around a tile that its pixels depend on."""
    reach = 0
    for index in range(len(config.channels)):
        reach += config.decoder_blocks[index]
        if index + 1 < len(config.channels):
            reach = -(-(reach + 1) // config.halvings[index][1])
    return reach + 1


def tiled_encoder(autoencoder: Autoencoder, tile: int) -> Step:
    """`encode_piece` of a stream in tiles of `tile` x `tile` pixels.

    A past holds the pasts of all tiles, halos included: somewhat more than that of whole frames.
    Raises UserError for an autoencoder whose frames cannot be tiled and for a tile off the grid.
    """
    checked = _tileable(autoencoder, tile)
    return _encoding(checked, checked.encode_piece, tile)


def tiled_decoder(autoencoder: Autoencoder, tile: int) -> Step:
    """`decode_piece` of a stream in tiles of `tile` x `tile` pixels; raises as `tiled_encoder`."""
    checked = _tileable(autoencoder, tile)
    return _decoding(checked, checked.decode_piece, tile)


def encode_in_tiles(
    autoencoder: Autoencoder, frames: Float[Tensor, "b 3 t h w"], tile: int
) -> Float[Tensor, "b c t2 h2 w2"]:
    """`encode_canonically`, each tile through the whole clip; raises as `tiled_encoder`."""
    checked = _tileable(autoencoder, tile)
    return _encoding(checked, _forgetful(checked.encode_canonically), tile)(frames)[0]


def decode_in_tiles(
    autoencoder: Autoencoder, latents: Float[Tensor, "b c t h w"], tile: int
) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """`decode_canonically`, each tile through the whole clip; raises as `tiled_encoder`."""
    checked = _tileable(autoencoder, tile)
    return _decoding(checked, _forgetful(checked.decode_canonically), tile)(latents)[0]


class Tiled:
    """A step done tile by tile; its past is the list of the tiles' pasts.

    `side` and `halo` are counted in latent cells; a cell is `cell_in` values wide in what comes in
    and `cell_out` in what goes out.
    """

    def __init__(self, step: Step, side: int, halo: int, cell_in: int, cell_out: int) -> None:
        self._step = step
        self._side = side
        self._halo = halo
        self._cell_in = cell_in
        self._cell_out = cell_out

    def __call__(
        self, x: Float[Tensor, "b c t h w"], past: Past = None
    ) -> tuple[Float[Tensor, "b c2 t2 h2 w2"], Past]:
        height, width = x.shape[3] // self._cell_in, x.shape[4] // self._cell_in
        rows, columns = (spans(cells, self._side, self._halo) for cells in (height, width))
        tiles = list(product(rows, columns))
        out: Tensor | None = None
        kept = []
        for (row, column), before in zip(tiles, [None] * len(tiles) if past is None else past):
            read = x[:, :, :, row.read(self._cell_in), column.read(self._cell_in)]
            given, after = self._step(read, before)
            kept.append(after)
            if out is None:
                size = height * self._cell_out, width * self._cell_out
                out = given.new_empty(*given.shape[:3], *size)
            core = given[:, :, :, row.core(self._cell_out), column.core(self._cell_out)]
            out[:, :, :, row.place(self._cell_out), column.place(self._cell_out)] = core
        assert out is not None
        return out, kept


@dataclass(frozen=True)
class Span:
    """Along one axis, in latent cells: a tile is [start, stop) and reads [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    def read(self, cell: int) -> slice:
        return slice(self.first * cell, self.last * cell)

    def core(self, cell: int) -> slice:
        """The tile within what was read."""
        return slice((self.start - self.first) * cell, (self.stop - self.first) * cell)

    def place(self, cell: int) -> slice:
        return slice(self.start * cell, self.stop * cell)


def spans(num_cells: int, side: int, halo: int) -> list[Span]:
    """`num_cells` cut into tiles of `side`, the last one shorter, each with its halo."""
    starts = range(0, num_cells, side)
    ends = [min(start + side, num_cells) for start in starts]
    return [
        Span(start, end, max(start - halo, 0), min(end + halo, num_cells))
        for start, end in zip(starts, ends)
    ]


def _tileable(autoencoder: Autoencoder, tile: int) -> CausalAutoencoder:
    autoencoder.config.check_tile(tile)
    assert isinstance(autoencoder, CausalAutoencoder)
    return autoencoder


def _encoding(autoencoder: CausalAutoencoder, step: Step, tile: int) -> Tiled:
    stride = autoencoder.spatial_stride
    return Tiled(step, tile // stride, encoder_halo(autoencoder.config), stride, 1)


def _decoding(autoencoder: CausalAutoencoder, step: Step, tile: int) -> Tiled:
    stride = autoencoder.spatial_stride
    return Tiled(step, tile // stride, decoder_halo(autoencoder.config), 1, stride)


def _forgetful(whole_clip: Callable[[Tensor], Tensor]) -> Step:
    return lambda x, past: (whole_clip(x), None)
