"""Keys and values of the rows that were fed before, for the transformer's attention.

A growing cache shows what it holds so far. A static one shows all of its capacity in every call,
and masks hide what is not there yet: shapes and addresses stay the same, which is what compiled
steps and CUDA graphs want.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

KeysValues = tuple[Float[Tensor, "b n k e"], Float[Tensor, "b n k e"]]


class Cache:
    """Keys and values of the contexts fed so far: [layers, b, heads, capacity, head_width]."""

    length: int | Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def shown(self) -> int | None:
        """How many rows every call sees; None: those that are held, and its own."""
        return None

    def put(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        """What a layer's call sees, with these rows in it, which stay as far as `keep` says."""
        raise NotImplementedError

    def keep(self, num_rows: int) -> None:
        """Ends the call: its leading `num_rows` rows are kept."""
        raise NotImplementedError

    def cut(self, length: int) -> None:
        """Forgets all but the first `length` rows."""
        raise NotImplementedError


class GrowingCache(Cache):
    """Its first rows are what it holds."""

    length: int

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys, values)
        self.length = 0

    def put(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        end = self.length + key.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, num_rows: int) -> None:
        self.length += num_rows

    def cut(self, length: int) -> None:
        self.length = length


class StaticCache(Cache):
    """The same tensors in every call: how many rows are held is one of them."""

    length: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(keys, values)
        self.length = torch.zeros((), dtype=torch.int64, device=keys.device)
        if keys.is_cuda:  # CUDA graphs change in place only what stays where it is
            for each in (self.keys, self.values, self.length):
                torch._dynamo.mark_static_address(each)

    @property
    def shown(self) -> int:
        return self.keys.shape[3]

    def put(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        rows = self.length + torch.arange(key.shape[2], device=key.device)
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, rows, key.to(keys.dtype))
        values.index_copy_(2, rows, value.to(values.dtype))
        return keys, values

    def keep(self, num_rows: int) -> None:
        self.length.add_(num_rows)

    def cut(self, length: int) -> None:
        self.length.fill_(length)


class Memory:
    """A cache, or none, during one call: attention after attention takes the next layer of it."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache
        self._layer = 0

    def extended(
        self, key: Float[Tensor, "b n l e"], value: Float[Tensor, "b n l e"]
    ) -> KeysValues:
        """What this layer's queries may see: rows of earlier calls, and these."""
        if self._cache is None:
            return key, value
        self._layer += 1
        return self._cache.put(self._layer - 1, key, value)

    def keep(self, num_context: int) -> None:
        """Ends the call: its leading `num_context` rows are kept."""
        if self._cache is not None:
            self._cache.keep(num_context)
