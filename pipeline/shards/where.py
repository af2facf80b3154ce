"""Filters: an expression over the columns of `manifest.parquet` chooses samples at open time.

    rows = matching_rows(Path("data/manifest.parquet"), "motion > 1.5 and label in ('cat', 'dog')")
    rows["parts/0.tar"]        # int64, ascending: rows of that shard

The language is a part of Python's expressions: names of columns, texts, numbers, True, False;
`and or not`; `== != < <= > >=`, also chained; `in` and `not in` with constants; `+ - * /`. Nothing
is evaluated by Python: the tree becomes an expression of pyarrow, which reads only the columns that
it names. A missing value matches nothing, and neither does its negation.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.format import ShardError
from tokenizer.settings import UserError

_MAX_LENGTH = 10_000
_MAX_CHOICES = 1000
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def matching_rows(manifest: Path, where: str) -> dict[str, np.ndarray]:
    """The rows of each shard, by its path, whose clips match.

    UserError when the expression is no such expression, or names no column of the manifest.
    """
    try:
        import pyarrow as pa
        import pyarrow.dataset
    except ImportError:
        raise UserError("filters need pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.dataset.dataset(manifest, format="parquet")
        condition = _Compiler(where, table.schema.names).compiled()
        found = table.to_table(columns=["shard", "row"], filter=condition)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"where {where!r}: {reason} ({manifest})") from None
    except OSError as error:
        raise ShardError(f"{manifest}: cannot be read ({error})") from None
    kept = found.filter(pyarrow.compute.field("row") >= 0)
    shards = kept["shard"].combine_chunks().dictionary_encode()
    codes = shards.indices.to_numpy(zero_copy_only=False)
    rows = kept["row"].to_numpy().astype(np.int64)
    order = np.lexsort((rows, codes))
    cuts = np.searchsorted(codes[order], np.arange(len(shards.dictionary) + 1))
    return {
        name: rows[order[first:last]]
        for name, first, last in zip(shards.dictionary.to_pylist(), cuts, cuts[1:])
    }


class _Compiler:
    """Turns the expression's tree into one of pyarrow, node by allowed node."""

    def __init__(self, where: str, columns: list[str]) -> None:
        from pyarrow import compute

        self._where = where
        self._columns = columns
        self._compute = compute
        if len(where) > _MAX_LENGTH:
            raise UserError(f"where: {len(where)} characters; the limit is {_MAX_LENGTH}")
        missing = {"shard", "row"} - set(columns)
        if missing:
            raise UserError(f"where: the manifest has no column {sorted(missing)[0]!r}")

    def compiled(self) -> Any:
        try:
            tree = ast.parse(self._where.strip(), mode="eval").body
            return self._condition(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            raise UserError(f"where {self._where!r}: not an expression ({reason})") from None

    def _condition(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return reduce(join, [self._condition(each) for each in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._condition(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:])
            return reduce(operator.and_, [self._comparison(*pair) for pair in pairs])
        if isinstance(node, (ast.Name, ast.Constant)):
            return self._value(node) == self._compute.scalar(True)
        raise self._refused(node)

    def _comparison(self, left: ast.expr, comparison: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(comparison, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List)) or len(right.elts) > _MAX_CHOICES:
                raise UserError(
                    f"where {self._where!r}: `in` needs at most {_MAX_CHOICES} constants in "
                    "parentheses"
                )
            value = self._value(left)
            equal = [value == self._value(each) for each in right.elts]
            if not equal:
                raise UserError(f"where {self._where!r}: `in ()` matches nothing")
            found = _balanced(equal)
            return found if isinstance(comparison, ast.In) else ~found
        compare = _COMPARE.get(type(comparison))
        if compare is None:
            raise self._refused(right)
        return compare(self._value(left), self._value(right))

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            if node.id not in self._columns:
                known = ", ".join(sorted(self._columns))
                raise UserError(f"where {self._where!r}: no column {node.id!r}; there are {known}")
            return self._compute.field(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return self._compute.scalar(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._compute.negate(self._value(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self._value(node.left), self._value(node.right))
        raise self._refused(node)

    def _refused(self, node: ast.expr) -> UserError:
        shown = ast.get_source_segment(self._where.strip(), node) or type(node).__name__
        return UserError(
            f"where {self._where!r}: {shown!r} is not allowed; there are columns, constants, and, "
            "or, not, comparisons, in, + - * /"
        )


def _balanced(conditions: list[Any]) -> Any:
    """All joined by or, as a shallow tree."""
    while len(conditions) > 1:
        pairs = zip(conditions[::2], conditions[1::2])
        rest = conditions[len(conditions) // 2 * 2 :]
        conditions = [left | right for left, right in pairs] + rest
    return conditions[0]
