"""What the tensors of a checkpoint say about one size, so that a wrong one hides nothing.

agreed_size(path, "the width", [1024, 1024, 768])      # 1024: what most of them say
count_numbered(checkpoint, "layers.{}.", limit=64)     # one more than the highest number
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizer.checkpoint import Checkpoint
from tokenizer.settings import UserError

MAX_SIZE = 1 << 20
"""Of channels and codes; published ones are far below."""


def agreed_size(path: Path, what: str, sizes: Iterable[int]) -> int:
    """The size that most have; UserError when none has one, or one beyond reason."""
    votes = Counter(sizes).most_common(1)
    if not votes:
        raise UserError(f"{path}: cannot tell {what}: every tensor that says it is missing")
    size = votes[0][0]
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"{path}: {what} is {size}; 1 to {MAX_SIZE} is possible")
    return size


def count_numbered(checkpoint: Checkpoint, template: str, limit: int) -> int:
    """One more than the highest number at {} among the keys; 1 or 0 for a template without {}."""
    pattern = re.compile(re.escape(template).replace(re.escape("{}"), r"(\d{1,9})"))
    matches = [pattern.match(key) for key in checkpoint.tensors]
    numbers = [int(each[1]) if pattern.groups else 0 for each in matches if each]
    count = max(numbers, default=-1) + 1
    if count > limit:
        raise UserError(f"{checkpoint.path}: {template} goes to {count - 1}; {limit - 1} at most")
    return count
