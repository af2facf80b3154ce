"""Vocabularies: prompts (nothing, a class name or a caption) as integers; saved in a run.

Captions for a frozen text tower are single integers: which of the captions it was shown.

Captions are cut into the word pieces of open_clip's byte-pair encoding. Only the pieces and merges
that the training captions need are kept, so a run carries its vocabulary in a small JSON file and
sampling needs no open_clip. An encoded prompt has `length` entries, padded with -1; all -1 means
"no condition".
"""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizer.settings import UserError

ABSENT = -1
FIELDS = {"class": "label", "text": "caption", "clip_text": "caption"}
"""What of a sample's metadata is its prompt, by the kind of condition."""
_NUM_EXAMPLES = 256
# What open_clip's own pattern finds in clean text: contractions, runs of letters, single digits,
# runs of anything else.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
_END = "</w>"


@dataclass(frozen=True)
class TowerShape:
    """What a text tower gives: at most so many pieces of `width`, a vector of `pooled_width`."""

    model: str
    sha256: str
    num_pieces: int
    width: int
    pooled_width: int


@dataclass(frozen=True)
class Vocabulary:
    """What a run was conditioned on: `kind` none, class (names), text (pieces and merges) or
    clip_text (whole captions, and the tower that read them).

    `length` is the number of integers of an encoded prompt, `examples` are prompts of the training
    data in order of frequency.
    """

    kind: str
    names: tuple[str, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    length: int = 0
    examples: tuple[str, ...] = ()
    tower: TowerShape | None = None
    _ids: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _ranks: dict[tuple[str, str], int] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._ids.update((name, index) for index, name in enumerate(self.names))
        self._ranks.update((pair, rank) for rank, pair in enumerate(self.merges))

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, prompt: str | None, cut: bool = False) -> list[int]:
        """`length` integers for a prompt; None is "no condition".

        Raises UserError on an unknown class or word, and on a prompt that is too long unless `cut`.
        """
        if prompt is None or self.kind == "none":
            return [ABSENT] * self.length
        if self.kind == "class":
            return [self._class(prompt)]
        if self.kind == "clip_text":
            return [self._caption(prompt)]
        if not words(prompt) and not cut:
            raise UserError(f"prompt {prompt!r} has no words: say what is to be seen")
        ids = [self._piece(piece, word) for word in words(prompt) for piece in self._pieces(word)]
        if len(ids) > self.length and not cut:
            raise UserError(
                f"prompt {prompt!r} has {len(ids)} word pieces; this run takes {self.length}: "
                "shorten it"
            )
        ids = ids[: self.length]
        return ids + [ABSENT] * (self.length - len(ids))

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        if self.tower is None:
            del content["tower"]
        return {key: value for key, value in content.items() if not key.startswith("_")}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Vocabulary:
        return cls(
            kind=content["kind"],
            names=tuple(content["names"]),
            merges=tuple((left, right) for left, right in content["merges"]),
            length=content["length"],
            examples=tuple(content["examples"]),
            tower=TowerShape(**content["tower"]) if "tower" in content else None,
        )

    def _class(self, name: str) -> int:
        if name not in self._ids:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.names[:20])}"
            raise UserError(f"class {name!r} was not in the training data; {hint}")
        return self._ids[name]

    def _caption(self, text: str) -> int:
        if text not in self._ids:
            raise UserError(
                f"caption {text!r} was not shown to the run's text tower; open the run with it"
            )
        return self._ids[text]

    def _piece(self, piece: str, word: str) -> int:
        if piece not in self._ids:
            known = [name.removesuffix(_END) for name in self.names if name.endswith(_END)]
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:40])}"
            raise UserError(f"prompt word {word!r} was in no training caption; {hint}")
        return self._ids[piece]

    def _pieces(self, word: str) -> list[str]:
        return merge_pieces(word, self._ranks)[0]


def build_vocabulary(kind: str, prompts: Iterable[str | None], max_pieces: int) -> Vocabulary:
    """The vocabulary for these training prompts: labels for `class`, captions for the others.

    That of `clip_text` has no tower yet.
    """
    counts: dict[str, int] = {}
    for prompt in prompts:
        if prompt is not None:
            counts[prompt] = counts.get(prompt, 0) + 1
    examples = tuple(sorted(counts, key=lambda prompt: (-counts[prompt], prompt))[:_NUM_EXAMPLES])
    if kind == "none":
        return Vocabulary("none")
    if not counts:
        what = "label" if kind == "class" else "caption"
        raise UserError(f"condition.kind is {kind}, but no training clip has a {what}")
    if kind == "class":
        return Vocabulary("class", names=tuple(sorted(counts)), length=1, examples=examples)
    if kind == "clip_text":
        return Vocabulary("clip_text", names=tuple(sorted(counts)), length=1, examples=examples)
    ranks = open_clip_merges()
    pieces: dict[str, list[str]] = {}
    used: set[tuple[str, str]] = set()
    for prompt in counts:
        for word in words(prompt):
            if word not in pieces:
                pieces[word], merges = merge_pieces(word, ranks)
                used.update(merges)
    longest = max(sum(len(pieces[word]) for word in words(prompt)) for prompt in counts)
    return Vocabulary(
        "text",
        names=tuple(sorted({piece for each in pieces.values() for piece in each})),
        merges=tuple(sorted(used, key=ranks.__getitem__)),
        length=max(1, min(longest, max_pieces)),
        examples=examples,
    )


def words(text: str) -> list[str]:
    """The words of a prompt, lower case."""
    return _WORD.findall(text.lower())


def merge_pieces(
    word: str, ranks: dict[tuple[str, str], int]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair encoding of a word: its pieces, and the merges that made them.

    The pair of lowest rank is merged first, wherever it occurs, until no pair has a rank.
    """
    letters = [_byte_names()[byte] for byte in word.encode("utf-8")]
    pieces = [*letters[:-1], letters[-1] + _END]
    merges = []
    while len(pieces) > 1:
        pairs = set(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merges.append(best)
        pieces = _merged(pieces, best)
    return pieces, merges


@lru_cache(maxsize=1)
def open_clip_merges() -> dict[tuple[str, str], int]:
    """The rank of each merge, from the file that ships inside open_clip (which is not imported)."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "training on captions needs open_clip's word pieces: pip install open_clip_torch"
        )
    path = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # After a version line: the merges that fill a vocabulary of 49,152 minus two times 256 letters
    # and two special tokens. What follows was never used by CLIP.
    chosen = lines[1 : 49152 - 256 - 2 + 1]
    return {(left, right): rank for rank, (left, right) in enumerate(map(str.split, chosen))}


def save_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    path.write_text(json.dumps(vocabulary.to_json(), indent=1, ensure_ascii=False) + "\n")


def load_vocabulary(path: Path) -> Vocabulary:
    return Vocabulary.from_json(json.loads(path.read_text(encoding="utf-8")))


def _merged(pieces: Sequence[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            result.append(pieces[place] + pieces[place + 1])
            place += 2
        else:
            result.append(pieces[place])
            place += 1
    return result


@lru_cache(maxsize=1)
def _byte_names() -> dict[int, str]:
    """A printable character for each byte, as in GPT-2: itself if it has one, else from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in names]
    return names | {byte: chr(256 + place) for place, byte in enumerate(others)}
