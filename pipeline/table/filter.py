"""`--where`: a condition on rows, written as in SQL or Python, parsed and checked before any row is read.

The text is never run as code: of what Python's parser makes of it, comparisons of columns with numbers and strings,
`in`, `and`, `or` and `not` are allowed, and Arrow computes them. As in SQL, a comparison with a missing value is
unknown, and a row is taken only where the whole condition is true. `'sky' in categories` is true of a row with such a
segment.
"""

import ast
from collections.abc import Mapping
from functools import reduce
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError

Condition: TypeAlias = ast.expr  # that `parse_filter` has checked

COLUMNS: dict[str, type] = {
    "key": str,
    "shard": str,
    "index": float,
    "width": float,
    "height": float,
    "num_segments": float,
    "quality": float,
    "image_sha256": str,
}
PREDICTED = "predicted_iou"  # known where a run is read with a calibration
CATEGORIES = "categories"  # the names of a row's, known where a run is read with a table of them
KEPT = "kept"  # `kept.license`: a field of the sample's own JSON, in runs labelled with --keep
MAX_LENGTH = 10_000  # letters; a longer text could exhaust the parser's stack
MAX_INTEGER = 2**63  # the least number that a column of integers cannot hold

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_KINDS = {str: "strings", float: "numbers"}
_EXAMPLE = "for example: num_segments > 3 and num_segments < 40"


def columns_of(condition: Condition) -> set[str]:
    """The columns that a condition reads."""
    return {node.id for node in ast.walk(condition) if isinstance(node, ast.Name)}


def either(one: Condition, other: Condition) -> Condition:
    """True where one of two conditions is."""
    return ast.BoolOp(ast.Or(), [one, other])


def is_not(column: str, value: str) -> Condition:
    """Whether a column holds something else."""
    return ast.Compare(ast.Name(column), [ast.NotEq()], [ast.Constant(value)])


def holds(condition: Condition, row: Mapping[str, Any]) -> bool | None:
    """Whether a condition is true of a row's values; None where a missing value leaves that unknown."""
    known: bool | None = truth(condition, {name: _scalar(name, row[name]) for name in columns_of(condition)}).as_py()
    return known


def _scalar(name: str, value: Any) -> Any:
    missing = pa.string() if COLUMNS.get(name) is str else pa.float64()
    return value if name in (CATEGORIES, KEPT) else pa.scalar(value) if value is not None else pa.scalar(None, missing)


def truth(condition: Condition, values: Any) -> Any:
    """Whether a condition is true: of each row where `values[name]` are a table's columns; null where it is unknown."""
    match condition:
        case ast.BoolOp(op=op, values=parts):
            both = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            return reduce(both, (truth(part, values) for part in parts))
        case ast.UnaryOp(operand=part):
            return pc.invert(truth(part, values))
        case ast.Compare(left=left, ops=ops, comparators=rights):  # `a < b < c` is two comparisons
            compared = zip([left, *rights], ops, rights, strict=False)
            return reduce(pc.and_kleene, (_compared(one, op, other, values) for one, op, other in compared))
    raise TypeError(f"{ast.dump(condition)} is no condition")


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, values: Any) -> Any:
    value = _operand(left, values)
    if type(op) in _COMPARE:
        return _COMPARE[type(op)](value, _operand(right, values))
    if isinstance(right, ast.Name) and values[right.id] is None:
        return pa.scalar(None, pa.bool_())
    possible = values[right.id] if isinstance(right, ast.Name) else ast.literal_eval(right)
    among = reduce(pc.or_kleene, (pc.equal(value, each) for each in possible if each is not None), pa.scalar(False))
    return pc.invert(among) if isinstance(op, ast.NotIn) else among


def _operand(node: ast.expr, values: Any) -> Any:
    if isinstance(node, ast.Attribute):
        kept = values[KEPT]
        many = isinstance(kept, pa.ChunkedArray)
        return pc.map_lookup(kept, node.attr, "first") if many else pa.scalar((kept or {}).get(node.attr), pa.string())
    return values[node.id] if isinstance(node, ast.Name) else pa.scalar(ast.literal_eval(node))


def parse_filter(text: str) -> Condition:
    """Parse a condition. Raises ConfigError where the text is none, or names a column that does not exist."""
    try:
        if len(text) > MAX_LENGTH:
            raise _refused(text, f"longer than {MAX_LENGTH} letters")
        condition = ast.parse(text.strip(), mode="eval").body
        _check(condition, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, f"cannot be read as a condition; {_EXAMPLE}") from error
    return condition


def _refused(text: str, reason: str) -> ConfigError:
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return ConfigError(f"--where {shown!r}: {reason}")


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=parts):
            for part in parts:
                _check(part, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check(operand, text)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            for one, op, other in zip([left, *rights], ops, rights, strict=False):
                _check_kinds(one, op, other, text)
        case _:
            raise _refused(text, f"{ast.unparse(node)!r} is no comparison; {_EXAMPLE}")


def _check_kinds(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> None:
    among = isinstance(op, ast.In | ast.NotIn)
    if not among and type(op) not in _COMPARE:
        raise _refused(text, "possible are <, <=, >, >=, ==, !=, in, not in, and, or, not")
    kind = _kind(left, text)
    other = _kind_of_list(right, text) if among else _kind(right, text)
    if kind is not other:
        raise _refused(text, f"{ast.unparse(left)} holds {_KINDS[kind]}, {ast.unparse(right)} {_KINDS[other]}")


def _kind(node: ast.expr, text: str) -> type:
    """The type of a column's values, or of a constant: str or float."""
    match node:
        case ast.Name(id=name) if name in COLUMNS or name == PREDICTED:
            return COLUMNS.get(name, float)
        case ast.Name(id=name):
            possible = ", ".join((*COLUMNS, PREDICTED, f"{KEPT}.FIELD"))
            raise _refused(text, f"no column {name!r}; possible are {possible}")
        case ast.Constant(value=str()) | ast.Attribute(value=ast.Name(id="kept")):
            return str
        case (
            ast.Constant(value=int() | float() as number)
            | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number))
        ) if not isinstance(number, bool):
            if isinstance(number, int) and number >= MAX_INTEGER:
                raise _refused(text, f"{ast.unparse(node)} is larger than any value of a column")
            return float
    raise _refused(text, f"{ast.unparse(node)!r} is neither a column nor a number nor a string in quotes")


def _kind_of_list(node: ast.expr, text: str) -> type:
    """The type of the constants, or of the categories, after `in`."""
    if isinstance(node, ast.Name) and node.id == CATEGORIES:
        return str
    if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
        raise _refused(text, "`in` takes a list, such as key in ['a', 'b']")
    if not all(isinstance(element, ast.Constant) for element in node.elts):
        raise _refused(text, "the list of `in` holds numbers or strings in quotes")
    kind, *others = {_kind(element, text) for element in node.elts}
    if others:
        raise _refused(text, "the list of `in` mixes numbers and strings")
    return kind
