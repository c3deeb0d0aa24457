"""Whether committed values can be: numbers of a damaged or foreign file are refused before anything is made of them.

Knows nothing of Parquet: it is given columns as numpy and bytes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.records import MAX_PIXELS, MAX_SIDE, OK

SIDES = ("width", "height")
HEADER = 26  # bytes of a PNG to the depth and kind of its pixels
ROUNDED = 1e-6  # by which a share may pass 1


def check_values(batch: Any) -> None:
    """Check a batch of rows, whichever columns it has. Raises ValueError that names the first impossible one."""
    names = set(batch.schema.names)
    ok = np.array([status == OK for status in batch.column("status").to_pylist()]) if "status" in names else None
    sides = {name: _numbers(batch.column(name)) for name in SIDES if name in names}
    for name, values in sides.items():
        if ok is not None and not np.all((values[ok] >= 1) & (values[ok] <= MAX_SIDE)):
            raise ValueError(f"damaged rows: a {name} of {values[ok].max():.0f} pixels")
    if "quality" in names:
        _check_shares("quality", batch.column("quality"))
    if "segments" in names:
        _check_segments(batch, sides)
    if "label_map" in names:
        _check_pngs(batch.column("label_map"), sides, ok)


class Places:
    """Where the rows of a file may stand. windows: shard and number of each, of so many samples."""

    def __init__(self, windows: Iterable[tuple[str, int]], samples: int) -> None:
        self._windows, self._samples = frozenset(windows), samples
        self._shard, self._index = "", -1  # of the last row

    def check(self, batch: Any) -> None:
        """Check the next rows, if they tell their place. Raises ValueError for one of another window, or twice."""
        if not batch.num_rows or not {"shard", "index"} <= set(batch.schema.names):
            return
        shards, indices = batch.column("shard").to_pylist(), batch.column("index").to_numpy()
        before, last = [self._shard, *shards], np.concatenate(([self._index], indices[:-1]))
        twice = [row for row in np.flatnonzero(indices <= last) if before[row] == shards[row]]
        foreign = {*zip(shards, (indices // self._samples).tolist(), strict=True)} - self._windows
        if twice or foreign:
            raise ValueError(f"damaged rows: index {indices[twice[0]] if twice else indices[0]} does not belong here")
        self._shard, self._index = shards[-1], indices[-1]


def _numbers(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN


def _check_shares(name: str, column: Any) -> None:
    values = _numbers(column.drop_null() if column.null_count else column)
    if not np.all((values >= -ROUNDED) & (values <= 1 + ROUNDED)):  # NaN is neither
        raise ValueError(f"damaged rows: a {name} that is not in [0, 1]")


def _check_segments(batch: Any, sides: dict[str, Any]) -> None:
    column = batch.column("segments")
    lengths = np.diff(column.offsets.to_numpy())
    if column.null_count:
        lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    found, owner = column.flatten(), np.repeat(np.arange(len(lengths)), lengths)
    if "num_segments" in batch.schema.names:
        counts = _numbers(batch.column("num_segments"))
        if np.any((counts != lengths) & ~np.isnan(counts)):
            raise ValueError("damaged rows: num_segments and segments differ")
    ids, areas = _numbers(found.field("id")), _numbers(found.field("area"))
    there, sound = np.zeros(len(ids), bool), np.all((ids >= 0) & (ids < lengths[owner]))
    if sound:
        there[(np.cumsum(lengths) - lengths)[owner] + ids.astype(np.int64)] = True
    if not sound or not np.all(there):
        raise ValueError("damaged rows: ids of segments are not 0 onwards")
    _check_shares("score", found.field("score"))
    boxes = found.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
    most = [sides[name][owner] if name in sides else MAX_SIDE for name in SIDES]
    inside = np.all(boxes >= 0, axis=1) if len(boxes) == len(ids) else np.zeros(1, bool)
    if not np.all(inside) or np.any((boxes[:, 0] + boxes[:, 2] > most[0]) | (boxes[:, 1] + boxes[:, 3] > most[1])):
        raise ValueError("damaged rows: the box of a segment is outside its image")
    if not np.all((areas >= 0) & (areas <= most[0] * most[1])):
        raise ValueError("damaged rows: a segment is larger than its image")


def _check_pngs(maps: Any, sides: dict[str, Any], ok: Any) -> None:
    """Check the headers of PNGs, all at once. ok: whether a row has labels; None: not known."""
    buffers, given = maps.buffers(), maps.is_valid().to_numpy(zero_copy_only=False)
    ends = np.frombuffer(buffers[1], np.int32)[maps.offset : maps.offset + len(maps) + 1]
    if np.any(given & (np.diff(ends) < HEADER)) or (ok is not None and np.any(ok & ~given)):
        raise ValueError("damaged rows: labels without a label map")
    [rows] = np.nonzero(given)
    if not len(rows):
        return
    heads = np.frombuffer(buffers[2], np.uint8)[ends[rows][:, None] + np.arange(HEADER)]
    grey = (heads[:, 25] == 0) & np.isin(heads[:, 24], (8, 16))
    if not np.all((heads[:, :8] == np.frombuffer(b"\x89PNG\r\n\x1a\n", np.uint8)).all(axis=1) & grey):
        raise ValueError("damaged rows: a label map that is no PNG of grey values of 8 or 16 bits")
    sizes = np.ascontiguousarray(heads[:, 16:24]).view(">u4").astype(np.int64)
    most = np.stack([sides[name][rows] if name in sides else np.full(len(rows), MAX_SIDE) for name in SIDES], axis=1)
    if not np.all((sizes >= 1) & (sizes <= most)) or np.any(sizes.prod(axis=1) > MAX_PIXELS):
        raise ValueError("damaged rows: a label map larger than its image")
