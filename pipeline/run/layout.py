"""What a listing of `labels/` says: which windows stand there, under which names, and which are missing."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pipeline.messages import ShardTask
from pipeline.records import Shard
from pipeline.storage.object_store import Store

ROLL_UPS = "status"


LABELS = "labels"
SYSTEM_FILES = ("._", ".DS_Store")  # that a Mac leaves in every folder it has looked into
DIGITS = 6  # of a window's number in a name, so that names sort by it up to a billion samples a shard


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
    strays: list[str] = field(default_factory=list)  # names that no object of ours has


def read_listing(names: Iterable[tuple[str, int]]) -> dict[str, ShardState]:
    """What is committed, by shard id, from names below the run and their bytes.

    The one place that decides which object holds a window's rows.
    """
    found: dict[str, ShardState] = {}
    for name, size in names:
        if name.endswith("/") or name.rpartition("/")[2].startswith(SYSTEM_FILES):
            continue
        owner, _, rest = name.removeprefix(f"{LABELS}/").partition(".")
        state = found.setdefault(owner, ShardState())
        state.size += size
        entry = _window_object(owner, rest, name, size)
        if rest == "end.json":
            state.ended = True
        elif entry is None:
            state.strays.append(name)
        elif entry.window not in state.windows or state.windows[entry.window].revision < entry.revision:
            state.windows[entry.window] = entry
    return found


def list_states(store: Store, prefix: str = "") -> dict[str, ShardState]:
    """What one listing shows to be committed, by shard id. prefix: of the names below `labels/` that are listed."""
    return read_listing(store.list(f"{LABELS}/{prefix}"))


def beginnings(shards: Collection[str], most: int) -> set[str]:
    """How names of these shards begin, told apart as far as `most` of them allow: listings that run side by side."""
    first, last = min(shards), max(shards)
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    found, length = {first[:shared]}, shared + 1
    while len(found) < len(shards) and len(longer := {shard[:length] for shard in shards}) <= most:
        found, length = longer, length + 1
    return found


def gaps(shard: Shard, state: ShardState, windows: int | None = None) -> list[ShardTask]:
    """The tasks that complete a shard, given what is there: runs of neighbours.

    windows: how many its end record says it has; what stands beyond is none of them. None: not looked up; the last task
    of a shard that has no end record is then open to its end, one that has is taken to have had its last window.
    """
    tasks: list[ShardTask] = []
    next_ = 0
    for window in sorted(number for number in state.windows if windows is None or number < windows):
        if window > next_:
            tasks.append(ShardTask(shard, next_, window - 1))
        next_ = window + 1
    if windows is None:
        return tasks if state.ended else [*tasks, ShardTask(shard, next_, None)]
    return [*tasks, ShardTask(shard, next_, windows - 1)] if next_ < windows else tasks


def window_name(shard: str, window: int, revision: int = 0) -> str:
    """Where a window's rows lie."""
    return f"{LABELS}/{window_stem(shard, window, revision)}.parquet"


def window_stem(shard: str, window: int, revision: int) -> str:
    """A window's name without folder and extension."""
    return f"{shard}.{window:0{DIGITS}d}" + (f".r{revision}" if revision else "")


def end_name(shard: str) -> str:
    """Where a shard's end record lies."""
    return f"{LABELS}/{shard}.end.json"


def _window_object(shard: str, rest: str, name: str, size: int) -> WindowObject | None:
    number, *more = rest.removesuffix(".parquet").split(".")
    if not rest.endswith(".parquet") or not number.isdecimal() or len(more) > 1:
        return None
    revision = more[0].removeprefix("r") if more else "0"
    if not revision.isdecimal():
        return None
    window = WindowObject(shard, int(number), int(revision), name, size)
    return window if name == window_name(shard, window.window, window.revision) else None
