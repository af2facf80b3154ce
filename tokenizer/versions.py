"""What made a file: the version of this program, as folders and reports say it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The installed version; of a copy of the source that is run in place, "not installed"."""
    try:
        return version("tessera")
    except PackageNotFoundError:
        return "not installed"
