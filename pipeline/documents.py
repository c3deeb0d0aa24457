"""Small documents as dataclasses: what is of the wrong type or out of range is said in one line.

What a newer version wrote beside the fields is passed over.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # slow to make


def validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of these values. Raises ValueError in one line."""
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(_first_of(error)) from error


def from_json(kind: type[T], data: bytes | str) -> T:
    """A dataclass of a JSON object. Raises ValueError in one line."""
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise ValueError(_first_of(error)) from error


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
