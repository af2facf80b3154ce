"""Answers: what a process that may have been taken over is let say, and how it crosses a pipe.

An answer is a pickle beside the arrays in it, raw. It is read by an unpickler that makes arrays,
plain values, errors and this project's records, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import IO, Any

_MAX_BYTES = 4 << 30
_OURS = ("builtins", "pipeline", "tokenizer")


class AnswerError(Exception):
    """What came is no answer."""


def write_answer(file: IO[bytes], value: Any, note: int) -> None:
    """Writes sizes and `note`, the pickle, then the arrays as they lie in memory."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    raw = [each.raw() for each in arrays]
    file.write(struct.pack("<QQq", len(pickled), len(raw), note))
    file.write(struct.pack(f"<{len(raw)}Q", *(each.nbytes for each in raw)))
    file.write(pickled)
    for each in raw:
        file.write(each)
    file.flush()


def read_answer(receive: Callable[[int], bytearray]) -> tuple[Any, int]:
    """(value, note) from exact numbers of bytes; raises AnswerError."""
    size, num_arrays, note = struct.unpack("<QQq", receive(24))
    if size + 8 * num_arrays > _MAX_BYTES:
        raise AnswerError("an answer is too long")
    sizes = struct.unpack(f"<{num_arrays}Q", receive(8 * num_arrays))
    if size + sum(sizes) > _MAX_BYTES:
        raise AnswerError("an answer is too long")
    pickled = receive(size)
    arrays = [receive(each) for each in sizes]
    try:
        return _Reader(io.BytesIO(pickled), buffers=arrays).load(), note
    except Exception as error:  # a hostile pickle can fail in any way
        raise AnswerError(f"an answer cannot be read: {error}") from None


def plain_error(error: Exception) -> Exception:
    """The error as something that an answer may hold."""
    if isinstance(error, MemoryError):
        return MemoryError()
    if type(error).__module__.partition(".")[0] in _OURS:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Reader(pickle.Unpickler):
    _ARRAYS = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ARRAYS:
            return super().find_class(module, name)
        if module.partition(".")[0] in _OURS:
            found = super().find_class(module, name)
            is_record = is_dataclass(found) or (
                isinstance(found, type) and issubclass(found, (Exception, tuple, set, frozenset))
            )
            if is_record and isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not what answers are made of")
