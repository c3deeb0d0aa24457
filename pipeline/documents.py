"""Small JSON documents as dataclasses: a value of the wrong type or out of range is told in one line.

Fields that a newer version wrote beside the known ones are passed over.
"""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # slow to make


def validated(kind: type[T], values: Any) -> T:
    """A dataclass of a mapping's values, or a list of them. Raises ValueError, in one line."""
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(_first_of(error)) from error


def from_json(kind: type[T], data: bytes | str) -> T:
    """A dataclass, or a list of them, from JSON. Raises ValueError, in one line."""
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise ValueError(_first_of(error)) from error


def to_json(document: object, indent: int | None = None) -> bytes:
    """A dataclass as a JSON object. Raises TypeError for values that JSON has not."""
    fields = _adapter(type(document)).dump_python(document)  # in a third of the time of `asdict`, which copies
    return json.dumps(fields, indent=indent).encode()  # not `dump_json`: version 0.1.0 wrote a space after each comma


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path + ': ' if path else ''}{first['msg'].removeprefix('Value error, ')}"
