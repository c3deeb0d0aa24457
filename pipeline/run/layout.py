"""What a listing of `labels/` shows: which windows are committed, under which names, and which are missing."""

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.storage.object_store import Store

ROLL_UPS = "status"
LABELS = "labels"
REFERENCE = "reference.png"  # the labels of the reference image by the first worker of the run
BROKEN = ".broken"  # behind the name of an object that could not be deleted: `verify --repair` has set it aside
SYSTEM_FILES = ("._", ".DS_Store")  # macOS writes them into every folder it shows
_WINDOW = re.compile(r"(\d{1,15})(?:\.r(\d{1,15}))?\.parquet")  # number and revision in a name
DIGITS = 6  # of a window's number in a name: names sort by it up to a billion samples a shard


@dataclass(frozen=True, slots=True)
class WindowObject:
    """A committed window as a listing shows it. revision: 0, or n for its n-th retry."""

    shard: str
    window: int
    revision: int
    name: str
    size: int

    @property
    def id(self) -> tuple[str, int, int]:
        """Shard, number and revision."""
        return (self.shard, self.window, self.revision)


@dataclass(slots=True)
class ShardState:
    """What a listing shows of one shard."""

    windows: dict[int, WindowObject] = field(default_factory=dict)  # the highest revision of each
    ended: bool = False
    size: int = 0  # bytes of all its objects
    version: str = ""  # of all of them together: changes with any
    broken: dict[int, int] = field(default_factory=dict)  # of windows: the highest revision that is marked as broken
    strays: list[str] = field(default_factory=list)  # names of foreign objects


def read_listing(names: Iterable[tuple[str, int, str]]) -> dict[str, ShardState]:
    """What is committed, by shard id. names: below the run's folder, in order, with their sizes in bytes and versions.

    Only this function decides which object holds a window's rows: the highest revision, unless that one, or a higher
    one, is marked as broken.
    """
    found: dict[str, ShardState] = {}
    for name, size, version in names:
        if name.endswith("/") or name.rpartition("/")[2].startswith(SYSTEM_FILES):
            continue
        owner, _, rest = name.removeprefix(f"{LABELS}/").partition(".")
        state = found.setdefault(owner, ShardState())
        state.size += size
        state.version = hashlib.blake2b(
            f"{state.version} {name} {version}".encode(errors="surrogateescape"), digest_size=8
        ).hexdigest()
        marked = rest.endswith(BROKEN)
        entry = _window_object(owner, rest.removesuffix(BROKEN), name.removesuffix(BROKEN), size)
        if rest == "end.json":
            state.ended = True
        elif entry is None:
            state.strays.append(name)
        elif marked:
            state.broken[entry.window] = max(entry.revision, state.broken.get(entry.window, 0))
        elif entry.window not in state.windows or state.windows[entry.window].revision < entry.revision:
            state.windows[entry.window] = entry
    for state in found.values():
        for window in state.windows.keys() & state.broken:
            if state.windows[window].revision <= state.broken[window]:
                del state.windows[window]
    return found


def list_states(store: Store, prefix: str = "") -> dict[str, ShardState]:
    """What is committed, by shard id, from one listing. prefix: of the names below `labels/` that are listed."""
    return read_listing(store.versions(f"{LABELS}/{prefix}"))


def prefixes(shards: Collection[str], most: int) -> set[str]:
    """Prefixes of these shards' names, as long as `most` different ones allow: each is listed beside the others."""
    first, last = min(shards), max(shards)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    found, length = {first[:shared]}, shared + 1
    while len(found) < len(shards) and len(longer := {shard[:length] for shard in shards}) <= most:
        found, length = longer, length + 1
    return found


def gaps(shard: Shard, state: ShardState, windows: int | None = None) -> list[ShardTask]:
    """The tasks that complete a shard, each for consecutive windows.

    A window that is marked as broken is asked for in its next revision, in a task of its own. windows: their number by
    the shard's end record; windows beyond it do not count. None: not looked up. Then the last task of a shard without
    an end record is open to its end, and a shard with one is taken to have its last window.
    """
    tasks: list[ShardTask] = []
    next_ = 0
    for window in sorted(n for n in state.windows.keys() | state.broken if windows is None or n < windows):
        if window > next_:
            tasks.append(ShardTask(shard, next_, window - 1))
        if window not in state.windows:
            tasks.append(ShardTask(shard, window, window, state.broken[window] + 1))
        next_ = window + 1
    if windows is None:
        return tasks if state.ended else [*tasks, ShardTask(shard, next_, None)]
    return [*tasks, ShardTask(shard, next_, windows - 1)] if next_ < windows else tasks


def window_name(shard: str, window: int, revision: int = 0) -> str:
    """The name of a window's object."""
    return f"{LABELS}/{window_stem(shard, window, revision)}.parquet"


def window_stem(shard: str, window: int, revision: int) -> str:
    """The name of a window's object without folder and extension."""
    return f"{shard}.{window:0{DIGITS}d}" + (f".r{revision}" if revision else "")


def end_name(shard: str) -> str:
    """The name of a shard's end record."""
    return f"{LABELS}/{shard}.end.json"


def _window_object(shard: str, rest: str, name: str, size: int) -> WindowObject | None:
    if not (parts := _WINDOW.fullmatch(rest)):
        return None
    window = WindowObject(shard, int(parts[1]), int(parts[2] or 0), name, size)
    return window if name == window_name(shard, window.window, window.revision) else None
