"""Settings as flags of the command line: which flags repeat what a run or an export was begun with."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from textwrap import shorten
from typing import Any

from diffseg.config import SegmentConfig

_NOT_GIVEN: tuple[Any, ...] = (None, [], ())
ITERATIONS = 3  # that a single threshold counts for
CONFIG = "[segment]"  # set in the file of --config alone


def _flags(names: Iterable[str]) -> dict[str, str]:
    return {name: f"--{name.replace('_', '-')}" for name in names}


LABEL = {  # settings that runs are compared by; "": set by no flag, such as the content of the weights
    **_flags((*(setting.name for setting in fields(SegmentConfig)), "model", "window", "image_key", "also", "keep")),
    "thresholds": "--threshold",
    **dict.fromkeys(("anchors_per_side", "split_components", "compile"), CONFIG),
    **dict.fromkeys(("weights_sha256", "schema", "reader"), ""),  # a run goes on with its own reader
}
EXPORT = {  # settings that exports are compared by
    **_flags(("format", "images", "members", "where", "min_area", "min_score", "limit", "split", "calibration")),
    **_flags(("categories", "corrections", "instances", "things", "stuff", "cut", "segments")),
    **dict.fromkeys(("run", "windows", "withdrawn", "among"), ""),
}


def flag(name: str, value: Any, flags: Mapping[str, str] = LABEL) -> str:
    """A setting as a flag: `--timestep 50`, `--no-refine`, `--also webdataset`. Raises KeyError where it has none."""
    option = flags[name]
    if option == CONFIG or (name == "thresholds" and len(value) == 1):  # as a flag, it would count for all iterations
        return f"{CONFIG} {name} = {json.dumps(value)} in the file of --config"
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    if name == "thresholds":
        return f"{option} {spelt(value)}"
    if name == "words":
        return f"{option} FILE with the {len(value):,} lines that run.json holds"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"{option} {shlex.quote(str(each))}" for each in values)


def spelt(thresholds: Sequence[float]) -> str:
    """Thresholds as `--threshold` takes them: a single number where it counts for all iterations."""
    shared = len(thresholds) == ITERATIONS and len(set(thresholds)) == 1
    return ",".join(map(number, thresholds[:1] if shared else thresholds))


def number(value: float) -> str:
    """A number in as few digits as give it back exactly."""
    return repr(float(value)).removesuffix(".0")


def refusal(
    kind: str, existing: Mapping[str, Any], asked: Mapping[str, Any], flags: Mapping[str, str] = LABEL, *more: str
) -> str:
    """Why what is asked for does not fit the existing run or export, and what to do; to stand after the output's name.

    existing, asked: settings by name. more: further reasons, which no flag can change.
    """
    names = [name for name in sorted({*existing, *asked}) if existing.get(name) != asked.get(name)]
    there, here = ({name: shorten(str(each.get(name)), 200) for name in names} for each in (existing, asked))
    reasons = "; ".join([*(f"{name}: {there[name]} there, {here[name]} here" for name in names), *more])
    settable = [name for name in names if flags.get(name)]
    given = [flag(name, existing[name], flags) for name in settable if existing.get(name) not in _NOT_GIVEN]
    options = " ".join(text for text in given if not text.startswith(CONFIG))
    begun = filter(None, [options, *(text for text in given if text.startswith(CONFIG))])
    left_out = [flags[name] for name in settable if existing.get(name) in _NOT_GIVEN]
    how = [f"with {' and '.join(begun)}"] if given else []
    how += [f"without {' and '.join(left_out)}"] if left_out else []
    repeatable = len(settable) == len(names) and not more
    mend = "repeat that, or use another --output" if repeatable else "use another --output"
    return f"holds another {kind} ({reasons}): " + (f"it was begun {' and '.join(how)}: {mend}" if how else mend)
