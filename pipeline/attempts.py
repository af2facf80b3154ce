"""Attempts: which units were begun and never ended, written down where a crash cannot erase it.

A marker `_attempts/<unit>.<n>` is made before a unit is given to a worker and deleted when it is
committed. One that is found later stands for a worker, or a whole build, that died over the unit;
`tessera status` tells of it.
"""

from __future__ import annotations

from collections import defaultdict

from pipeline.commit import Store

ATTEMPTS = "_attempts"


class Attempts:
    """The markers of a dataset."""

    def __init__(self, store: Store) -> None:
        self._storage = store.storage
        self._markers: dict[str, list[str]] = defaultdict(list)
        for name in self._storage.names(ATTEMPTS):
            self._markers[name.rpartition(".")[0]].append(name)

    def begin(self, unit: str) -> None:
        name = f"{unit}.{len(self._markers[unit])}"
        self._storage.create(f"{ATTEMPTS}/{name}", b"")
        self._markers[unit].append(name)

    def end(self, unit: str) -> None:
        """The unit is committed: its markers go."""
        for name in self._markers.pop(unit, ()):
            self._storage.delete(f"{ATTEMPTS}/{name}")

    def begun(self) -> dict[str, int]:
        """How often each unit was begun and not ended."""
        return {unit: len(names) for unit, names in sorted(self._markers.items()) if names}
