"""Media: a source's file as a decoder takes it, wherever it lies.

    with open_media("tar+1536+8000:s3://lab/0.tar", limits) as media:
        decoder.probe(media)

A file of this machine is its path; anything else is fetched into a temporary file that has no name:
nothing is left of it when the process ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.decode.decoder import DecodeError, DecodeLimits
from pipeline.sources.location import FileTooLarge, fetched, is_local_file, path_of


@contextmanager
def open_media(location: str, limits: DecodeLimits) -> Iterator[Path]:
    """The file at a location; DecodeError `open`, `too_large` or `timeout` when there is none."""
    if is_local_file(location):
        yield Path(location)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(
                fetched(location, limits.max_file_bytes, limits.timeout_seconds)
            )
        except FileTooLarge as error:
            raise DecodeError("too_large", str(error)) from None
        except TimeoutError as error:
            raise DecodeError("timeout", str(error)) from None
        except OSError as error:
            raise DecodeError("open", str(error)) from None
        yield path_of(file)
