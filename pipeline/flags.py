"""Settings as a person says them: by which flag what a run or an export was begun with is repeated."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_NOT_GIVEN: tuple[Any, ...] = (None, [], ())
ITERATIONS = 3  # that a single threshold counts for
CONFIG = "[segment]"  # said in the file of --config alone
LABEL = {  # what run.json compares; "": nothing that is said, such as the content of the weights
    "mode": "--mode",
    "thresholds": "--threshold",
    "anchors_per_side": CONFIG,
    "refine": "--refine",
    "timestep": "--timestep",
    "image_size": "--image-size",
    "output_size": "--output-size",
    "min_area": "--min-area",
    "split_components": CONFIG,
    "dtype": "--dtype",
    "compile": CONFIG,
    "model": "--model",
    "window": "--window",
    "image_key": "--image-key",
    "also": "--also",
    "weights_sha256": "",
    "schema": "",
    "reader": "",  # a run goes on with its own
}
EXPORT = {  # what export.json compares
    "format": "--format",
    "images": "--images",
    "members": "--members",
    "where": "--where",
    "min_area": "--min-area",
    "min_score": "--min-score",
    "limit": "--limit",
    "split": "--split",
    "run": "",
    "windows": "",
}


def flag(name: str, value: Any, flags: Mapping[str, str] = LABEL) -> str:
    """A setting as it is given: `--timestep 50`, `--no-refine`, `--also webdataset`. Raises KeyError without a flag."""
    said = flags[name]
    if said == CONFIG or (name == "thresholds" and len(value) == 1):  # one number would count for all iterations
        return f"{CONFIG} {name} = {json.dumps(value)} in the file of --config"
    if isinstance(value, bool):
        return said if value else said.replace("--", "--no-", 1)
    if name == "thresholds":
        return f"{said} {spelt(value)}"
    many = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"{said} {shlex.quote(str(one))}" for one in many)


def spelt(thresholds: Sequence[float]) -> str:
    """Thresholds as `--threshold` takes them: a single number where it counts for all iterations."""
    shared = len(thresholds) == ITERATIONS and len(set(thresholds)) == 1
    return ",".join(map(number, thresholds[:1] if shared else thresholds))


def number(value: float) -> str:
    """With as many digits as tell it from every other: read back, it is the same."""
    return repr(float(value)).removesuffix(".0")


def refusal(
    kind: str, there: Mapping[str, Any], here: Mapping[str, Any], flags: Mapping[str, str] = LABEL, *more: str
) -> str:
    """Why what is asked for does not go where another one of its kind is, and what to do: follows the name of a place.

    there, here: settings by name. more: what else keeps them apart, and no flag can mend.
    """
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    told = "; ".join([*(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names), *more])
    said = [name for name in names if flags.get(name)]
    given = [flag(name, there[name], flags) for name in said if there.get(name) not in _NOT_GIVEN]
    plain = " ".join(one for one in given if not one.startswith(CONFIG))
    begun = filter(None, [plain, *(one for one in given if one.startswith(CONFIG))])
    left_out = [flags[name] for name in said if there.get(name) in _NOT_GIVEN]
    how = [f"with {' and '.join(begun)}"] if given else []
    how += [f"without {' and '.join(left_out)}"] if left_out else []
    mend = "repeat that, or use another --output" if len(said) == len(names) and not more else "use another --output"
    return f"holds another {kind} ({told}): " + (f"it was begun {' and '.join(how)}: {mend}" if how else mend)
