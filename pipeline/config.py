"""The configuration of a run: a TOML file with two tables, and the flags that override it.

[segment]   changes the labels: diffseg.SegmentConfig, fingerprinted
[run]       changes only speed and cost: RunConfig
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_type_hints

from diffseg.config import SegmentConfig
from pipeline.documents import validated
from pipeline.errors import ConfigError
from pipeline.watch import LEAST_S, SILENCE_S

T = TypeVar("T")
KEEP = re.compile(r"[\w.-]+:\w+(,\w+){0,31}")
LARGEST = 1 << 20  # bytes of a configuration
Device: TypeAlias = Literal["auto", "gpu", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a run is executed. Nothing here changes a label."""

    workers: int | None = None  # None: one a GPU, or one a CPU where there are none; 0: in this process, without Ray
    device: Device = "auto"  # gpu: even where the cluster has none yet but will start some; auto: if it has any
    ray_address: str | None = None  # None: RAY_ADDRESS, or a private Ray on this machine
    batch_size: int | None = None  # None: found by the model
    window: int | None = None  # samples a commit; None: that of the existing run, else WINDOW
    max_attempts: int = 3  # of a task of which no window is committed
    max_failed: float = 0.001  # share of rows without labels that still counts as success
    image_key: str | None = None  # extension that holds the image, where samples have several
    also: tuple[Literal["webdataset"], ...] = ()
    keep: str | None = None  # MEMBER:FIELD,...: of each sample's JSON, a column of the run
    quarantine_bytes: Literal["all", "none"] = "all"  # of samples that kill workers
    stall: float = SILENCE_S  # seconds without an answer or a start of a worker, after which the run stops
    price: float | None = None  # of a worker's hour, for the metric of a run's cost

    def __post_init__(self) -> None:
        most_of = {"workers": 100_000, "batch_size": 65_536, "window": 1 << 24, "max_attempts": 1_000}
        for name, most in most_of.items():
            least = 0 if name == "workers" else 1
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                limit = f"least {least}" if value < least else f"most {most:,}"
                raise ValueError(f"{name} must be at {limit}, got {value}")
        if self.keep is not None and not KEEP.fullmatch(self.keep):
            raise ValueError(f"keep is a member and fields of it, such as json:license,url, got {self.keep[:80]!r}")
        if not math.isfinite(self.stall):
            raise ValueError(f"stall is a number of seconds, got {self.stall}")
        if not self.stall >= LEAST_S:
            raise ValueError(f"stall must be at least {LEAST_S:g} seconds, got {self.stall}")
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise ValueError(f"price is what an hour of a worker costs, got {self.price}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed is a share in [0, 1], got {self.max_failed}")


def read_config(
    path: Path | None, segment: Mapping[str, Any], run: Mapping[str, Any]
) -> tuple[SegmentConfig, RunConfig]:
    """Read both configurations from a file (None: defaults); flags that are not None override it.

    Raises ConfigError, in one line, for a value that is misspelt, of the wrong type or out of range.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            with path.open("rb") as file:
                text = file.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ConfigError(f"{path}: larger than {LARGEST:,} bytes, which no configuration is")
            tables = tomllib.loads(text.decode())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: no TOML: {error}") from error
    source = str(path) if path else "options"
    _refuse_unknown(source, "the file", tables, ("segment", "run"))
    return (
        _build(SegmentConfig, source, "segment", tables, segment),
        _build(RunConfig, source, "run", tables, run),
    )


def _build(kind: type[T], source: str, name: str, tables: Mapping[str, Any], flags: Mapping[str, Any]) -> T:
    written = tables.get(name, {})
    if not isinstance(written, dict):
        raise ConfigError(f"{source}: [{name}] must be a table")
    _refuse_unknown(source, f"[{name}]", written, [field.name for field in fields(kind)])  # type: ignore[arg-type]
    values = {**written, **{key: value for key, value in flags.items() if value is not None}}
    try:
        made = validated(kind, values)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{source}: [{name}] {error}") from error
    types = get_type_hints(kind)
    for key, value in values.items():
        expected = str(types[key])
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool) and "bool" not in expected:
                raise ConfigError(f"{source}: [{name}] {key} is no yes or no, got {str(item).lower()}")
            if not isinstance(item, bool) and "bool" in expected and item is not None:
                raise ConfigError(f"{source}: [{name}] {key} is true or false, got {item!r:.80}")
            number = "int" in expected or "float" in expected
            if isinstance(item, str) and number and f"'{item}'" not in expected:
                raise ConfigError(f"{source}: [{name}] {key} is a number, got {item!r:.80}")
    return made


def _refuse_unknown(source: str, table: str, given: Mapping[str, Any], possible: Any) -> None:
    for key in given:
        if key not in possible:
            raise ConfigError(f"{source}: {table} has no {key!r}; it has {', '.join(possible)}")
