"""Other captions: a parquet of (clip_id or key, caption) that replaces those in the shards.

    captions = read_captions(Path("captions.parquet"))
    dataset = open_dataset("data", captions="captions.parquet")     # or so

A new captioner needs no new shards: the file is named when a dataset is opened. `key` is the name
of a sample; `clip_id` is looked up in its metadata. Samples that the file does not name keep their
captions; the others also say by which file (`caption_by`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shards.sidecar import key_digest
from pipeline.shards.table import read_table
from tokenizer.settings import UserError

_COLUMNS = ("clip_id", "key")


@dataclass(frozen=True)
class Captions:
    """Captions by clip_id, or by the digest of the key; `fingerprint` covers all of them."""

    column: str
    texts: Mapping[Hashable, str]
    name: str
    fingerprint: str

    def apply(self, metadata: list[dict[str, Any]], keys: Sequence[Hashable]) -> None:
        """Replaces the captions in `metadata`, whose samples have these digests of keys."""
        by_key = self.column == "key"
        for each, key in zip(metadata, keys):
            text = self.texts.get(key if by_key else each.get("clip_id"))
            if text is not None:
                each["caption"] = text
                each["caption_by"] = self.name


def read_captions(path: Path, manifest: Path | None = None) -> Captions:
    """The captions in a parquet; UserError when it is none, or names a sample twice.

    With the dataset's `manifest`, also when no caption is about a clip in it.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("a parquet of captions needs pyarrow: pip install pyarrow") from None
    try:
        names = pq.read_schema(path).names
        column = next((name for name in _COLUMNS if name in names), None)
        if column is None or "caption" not in names:
            raise UserError(
                f"{path}: has columns {', '.join(names)}; captions need clip_id or key, and caption"
            )
        table = read_table(path, [column, "caption"]).drop_null()
        if manifest is not None and column in pq.read_schema(manifest).names:
            known = read_table(manifest, [column])[column].cast(pa.string())
            found = pa.compute.is_in(table[column].cast(pa.string()), known.combine_chunks())
            if not pa.compute.any(found).as_py():
                raise UserError(f"{path}: no {column} in it is one of {manifest}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet that can be read ({error})") from None
    return _captions(path, column, table[column].to_pylist(), table["caption"].to_pylist())


def _captions(path: Path, column: str, keys: list[Any], texts: list[Any]) -> Captions:
    if not all(isinstance(each, str) for each in (*keys, *texts)):
        raise UserError(f"{path}: {column} and caption must be texts")
    if len(set(keys)) < len(keys):
        raise UserError(f"{path}: the same {column} has several captions")
    digest = hashlib.sha256()
    for key, text in sorted(zip(keys, texts)):
        digest.update(f"{len(key)} {len(text)} {key} {text}\n".encode("utf-8", "surrogatepass"))
    names: list[Hashable] = [key_digest(key) for key in keys] if column == "key" else list(keys)
    return Captions(column, dict(zip(names, texts)), path.name, digest.hexdigest())
