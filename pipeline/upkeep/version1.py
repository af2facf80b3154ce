"""Format version 1: what of it differs, for `tessera migrate`.

text = raised(json.loads(text), "data/shards.json")     # the same declaration in version 2
made = making(folder, token_set)                        # how its codes were made, if at all
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.commit import fingerprint_of
from pipeline.config import BuildConfig
from pipeline.encode import code_recipe, frame_recipe
from pipeline.shards.format import ShardError, TokenSet, canonical_json
from pipeline.tokenize import TokenizeJob
from tokenizer.settings import UserError, read_settings

VERSION = 1
_STAGE_VERSIONS = (1, 1)  # of tokenize and of the preprocess rule, in format version 1


@dataclass(frozen=True)
class Making:
    """The tokenize job that a folder describes, and the fingerprint of its commits in version 1.

    Codes of a commit with this fingerprint are what the job would make here and now.
    """

    job: TokenizeJob
    fingerprint: str


def raised(values: dict[str, Any], where: str) -> bytes:
    """The declaration of version 1 as one of version 2: buckets have further schedules."""
    try:
        contents = [[each["split"], each["bucket"], each["sha256"]] for each in values["shards"]]
        identity = [values["token_sets"], values["buckets"], contents]
        if values["fingerprint"] != hashlib.sha256(canonical_json(identity)).hexdigest():
            raise ShardError(f"{where}: its fingerprint is not that of what it declares")
        buckets = [{**each, "schedules": {}} for each in values["buckets"]]
        identity = [values["token_sets"], buckets, contents]
        declaration = {
            **values,
            "format_version": 2,
            "buckets": buckets,
            "fingerprint": hashlib.sha256(canonical_json(identity)).hexdigest(),
        }
        return canonical_json(declaration)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{where}: not a valid shard list ({error})") from None


def making(folder: Path, token_set: TokenSet) -> Making | None:
    """How codes are made in this folder; None where its config or tokenizer cannot be read."""
    try:
        config = read_settings(BuildConfig, folder / "config.yaml")
        limits = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["limits"]
        recipe = (
            frame_recipe(config.tokenize)
            if token_set.kind == "frames"
            else code_recipe(folder / "tokenizer", config.tokenize)
        )
    except (OSError, UserError, KeyError, TypeError):
        return None
    facts = {
        "versions": list(_STAGE_VERSIONS),
        "decoder": config.decoder,
        "limits": limits,
        "encoder": recipe.fingerprint,
    }
    return Making(TokenizeJob(config, str(folder), recipe), fingerprint_of(facts))
