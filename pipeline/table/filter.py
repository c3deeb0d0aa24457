"""`--where`: a condition on rows, written as in SQL or Python, parsed and checked before any row is read.

The text is never evaluated as code: it becomes a small tree of comparisons of columns with numbers and strings, `in`,
`and`, `or` and `not`, which `rows` hands to Parquet. As in SQL, a comparison with a missing value is unknown, and a row
is taken only where the whole condition is true. `'sky' in categories` is true of a row with such a segment.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.errors import ConfigError

Value: TypeAlias = float | int | str

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
HAS = "has"  # whether a set on the left has the value on the right
MAX_LENGTH = 10_000  # letters; a longer text could exhaust the parser's stack
MAX_INTEGER = 2**63  # the least number that a column of integers cannot hold

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    HAS: operator.contains,
}
_KINDS = {str: "strings", float: "numbers"}
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_EXAMPLE = "for example: num_segments > 3 and num_segments < 40"


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A number or a string."""

    value: Value


@dataclass(frozen=True, slots=True)
class Comparison:
    """operator: one of COMPARE."""

    operator: str
    left: Column | Constant
    right: Column | Constant


@dataclass(frozen=True, slots=True)
class Among:
    """`in`: whether a value is one of several constants."""

    value: Column | Constant
    possible: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """`not`: the opposite of a condition; unknown stays unknown."""

    part: "Condition"


@dataclass(frozen=True, slots=True)
class Every:
    """`and`: whether all conditions are true."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Some:
    """`or`: whether any condition is true."""

    parts: tuple["Condition", ...]


Condition: TypeAlias = Comparison | Among | Not | Every | Some


def columns_of(condition: Condition) -> set[str]:
    """The columns that a condition reads."""
    match condition:
        case Comparison(_, left, right):
            return {side.name for side in (left, right) if isinstance(side, Column)}
        case Among(value, _):
            return {value.name} if isinstance(value, Column) else set()
        case Not(part):
            return columns_of(part)
        case Every(parts) | Some(parts):
            return set[str]().union(*map(columns_of, parts))


def holds(condition: Condition, row: Mapping[str, Any]) -> bool | None:
    """Whether a condition is true of a row's values; None where a missing value leaves that unknown."""
    match condition:
        case Comparison(sign, left, right):
            values = [row[side.name] if isinstance(side, Column) else side.value for side in (left, right)]
            return None if None in values else bool(COMPARE[sign](*values))
        case Among(value, possible):
            found = row[value.name] if isinstance(value, Column) else value.value
            return None if found is None else found in possible
        case Not(part):
            return None if (known := holds(part, row)) is None else not known
        case Every(parts) | Some(parts):
            decided = isinstance(condition, Some)  # one such part decides
            known_parts = [holds(part, row) for part in parts]
            return decided if decided in known_parts else None if None in known_parts else not decided


def parse_filter(text: str) -> Condition:
    """Parse a condition. Raises ConfigError where the text is none, or names a column that does not exist."""
    try:
        if len(text) > MAX_LENGTH:
            raise _refused(text, f"longer than {MAX_LENGTH} letters")
        return _condition(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, f"cannot be read as a condition; {_EXAMPLE}") from error


def _refused(text: str, reason: str) -> ConfigError:
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return ConfigError(f"--where {shown!r}: {reason}")


def _condition(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return Every(tuple(_condition(value, text) for value in values))
        case ast.BoolOp(values=values):
            return Some(tuple(_condition(value, text) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Not(_condition(operand, text))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            compared = tuple(_comparisons(left, ops, rights, text))
            return compared[0] if len(compared) == 1 else Every(compared)
    raise _refused(text, f"{ast.unparse(node)!r} is no comparison; {_EXAMPLE}")


def _comparisons(left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr], text: str) -> Iterator[Condition]:
    """`a < b < c` is two comparisons."""
    for node, op, other in zip([left, *rights[:-1]], ops, rights, strict=True):
        operator = _OPERATORS.get(type(op))
        if operator is None:
            raise _refused(text, f"possible are {', '.join(_OPERATORS.values())}, and, or, not")
        value = _value(node, text)
        if "in" in operator and isinstance(other, ast.Name) and other.id == CATEGORIES:
            _same_kind(_kind(value), str, node, other, text)
            has = Comparison(HAS, Column(CATEGORIES), value)
            yield has if operator == "in" else Not(has)
            continue
        if "in" not in operator:
            right = _value(other, text)
            _same_kind(_kind(value), _kind(right), node, other, text)
            yield Comparison(operator, value, right)
            continue
        possible = _list(other, text)
        _same_kind(_kind(value), _kind(Constant(possible[0])), node, other, text)
        among = Among(value, possible)
        yield among if operator == "in" else Not(among)


def _same_kind(kind: type, other_kind: type, node: ast.expr, other: ast.expr, text: str) -> None:
    if kind is not other_kind:
        raise _refused(text, f"{ast.unparse(node)} holds {_KINDS[kind]}, {ast.unparse(other)} {_KINDS[other_kind]}")


def _kind(value: Column | Constant) -> type:
    if isinstance(value, Column):
        return COLUMNS.get(value.name, float)
    return str if isinstance(value.value, str) else float


def _value(node: ast.expr, text: str) -> Column | Constant:
    match node:
        case ast.Name(id=name) if name in COLUMNS or name == PREDICTED:
            return Column(name)
        case ast.Name(id=name):
            raise _refused(text, f"no column {name!r}; possible are {', '.join(COLUMNS)}, {PREDICTED}")
        case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return Constant(_constant(node, text))
    raise _refused(text, f"{ast.unparse(node)!r} is neither a column nor a number nor a string in quotes")


def _constant(node: ast.expr, text: str) -> Value:
    match node:
        case ast.Constant(value=str() as word):
            return word
        case ast.UnaryOp(operand=ast.Constant(value=int() | float() as number)):
            value: float | int = -number
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value = number
        case _:
            raise _refused(text, f"{ast.unparse(node)!r} is neither a column nor a number nor a string in quotes")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise _refused(text, f"{ast.unparse(node)} is larger than any value of a column")
    return value


def _list(node: ast.expr, text: str) -> tuple[Value, ...]:
    """The constants after `in`."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
        raise _refused(text, "`in` takes a list, such as key in ['a', 'b']")
    if not all(isinstance(element, ast.Constant) for element in node.elts):
        raise _refused(text, "the list of `in` holds numbers or strings in quotes")
    values = tuple(_constant(element, text) for element in node.elts)
    if len({isinstance(value, str) for value in values}) > 1:
        raise _refused(text, "the list of `in` mixes numbers and strings")
    return values
