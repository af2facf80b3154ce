"""Reading ahead: the results of a function for 0, 1, 2, ... made by threads before they are asked.

    with ReadAhead(loader.batch, range(first, stop), threads=1, depth=2) as batches:
        for batch in batches: ...

The order is exact. At most `depth` results wait. What the function raises for a number is raised
when that number's turn comes. Leaving the block stops the threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """An iterator over function(number) for each number; `threads` 0 makes them when asked."""

    def __init__(
        self,
        function: Callable[[int], T],
        numbers: Iterable[int],
        threads: int = 1,
        depth: int = 2,
    ) -> None:
        if threads < 0 or depth < 1:
            raise ValueError(f"threads ({threads}) must not be negative, depth ({depth}) positive")
        self._function = function
        self._numbers = iter(numbers)
        self._pool = ThreadPoolExecutor(threads, "read-ahead") if threads else None
        self._waiting: deque[Future[T]] = deque()
        self._depth = depth
        self._submit()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            return self._function(next(self._numbers))
        if not self._waiting:
            self.close()
            raise StopIteration
        result = self._waiting.popleft().result()
        self._submit()
        return result

    def close(self) -> None:
        """Stops reading ahead; what is being read is waited for."""
        self._numbers = iter(())
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self) -> None:
        while self._pool is not None and len(self._waiting) < self._depth:
            number = next(self._numbers, None)
            if number is None:
                return
            self._waiting.append(self._pool.submit(self._function, number))
