"""`--where`: a condition on rows, written as in SQL or Python, parsed and checked before any row is read.

Nothing is ever evaluated as code: the text becomes a syntax tree, and only comparisons of columns with numbers and
strings, `in`, `and`, `or` and `not` are known. As in SQL, a comparison with a missing value is unknown, and a row is
taken only where the whole is true.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pipeline.errors import ConfigError

Row: TypeAlias = Mapping[str, Any]
Condition: TypeAlias = Callable[[Row], bool | None]  # None: unknown
_Value: TypeAlias = Callable[[Row], Any]

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
MAX_LENGTH = 10_000  # letters; beyond it the parser itself could be made to run out of stack

_KINDS = {str: "strings", float: "numbers"}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_EXAMPLE = "for example: quality > 0.5 and num_segments < 40"


def parse_where(text: str) -> Callable[[Row], bool]:
    """A test for rows. Raises ConfigError for anything but a condition on the columns that there are."""
    try:
        if len(text) > MAX_LENGTH:
            raise _refused(text, f"longer than {MAX_LENGTH} letters")
        tree = ast.parse(text.strip(), mode="eval").body
        condition = _condition(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, f"cannot be read as a condition; {_EXAMPLE}") from error
    return lambda row: condition(row) is True


def _refused(text: str, reason: str) -> ConfigError:
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return ConfigError(f"--where {shown!r}: {reason}")


def _condition(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return _all([_condition(value, text) for value in values])
        case ast.BoolOp(values=values):
            return _any([_condition(value, text) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _not(_condition(operand, text))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip([left, *rights[:-1]], ops, rights, strict=True)
            return _all([_comparison(one, op, other, text) for one, op, other in pairs])
    raise _refused(text, f"{ast.unparse(node)!r} is no comparison; {_EXAMPLE}")


def _all(parts: list[Condition]) -> Condition:
    def test(row: Row) -> bool | None:
        found = [part(row) for part in parts]
        return False if False in found else None if None in found else True

    return test


def _any(parts: list[Condition]) -> Condition:
    def test(row: Row) -> bool | None:
        found = [part(row) for part in parts]
        return True if True in found else None if None in found else False

    return test


def _not(part: Condition) -> Condition:
    def test(row: Row) -> bool | None:
        found = part(row)
        return None if found is None else not found

    return test


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Condition:
    compare = _COMPARE.get(type(op))
    if compare is None:
        raise _refused(text, "possible are <, <=, >, >=, ==, !=, in, not in, and, or, not")
    one, kind = _value(left, text)
    if isinstance(op, ast.In | ast.NotIn):
        other, other_kind = _list(right, text)
    else:
        other, other_kind = _value(right, text)
    if kind is not other_kind:
        raise _refused(text, f"{ast.unparse(left)} holds {_KINDS[kind]}, {ast.unparse(right)} {_KINDS[other_kind]}")

    def test(row: Row) -> bool | None:
        a, b = one(row), other(row)
        return None if a is None or b is None else compare(a, b)

    return test


def _value(node: ast.expr, text: str) -> tuple[_Value, type]:
    """A column or a constant, and its kind."""
    match node:
        case ast.Name(id=name) if name in COLUMNS:
            return operator.itemgetter(name), COLUMNS[name]
        case ast.Name(id=name):
            raise _refused(text, f"no column {name!r}; possible are {', '.join(COLUMNS)}")
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda _: -number, float
        case ast.Constant(value=str() as word):
            return lambda _: word, str
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return lambda _: number, float
    raise _refused(text, f"{ast.unparse(node)!r} is neither a column nor a number nor a string in quotes")


def _list(node: ast.expr, text: str) -> tuple[_Value, type]:
    """The constants that `in` looks through."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
        raise _refused(text, "`in` takes a list, such as key in ['a', 'b']")
    if not all(isinstance(element, ast.Constant) for element in node.elts):
        raise _refused(text, "the list of `in` holds numbers or strings in quotes")
    found = [_value(element, text) for element in node.elts]
    kinds = {kind for _, kind in found}
    if len(kinds) > 1:
        raise _refused(text, "the list of `in` mixes numbers and strings")
    values = frozenset(value({}) for value, _ in found)
    return lambda _: values, kinds.pop()
