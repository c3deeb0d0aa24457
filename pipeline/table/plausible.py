"""Whether committed values can be: numbers of a damaged or foreign file are refused before anything is made of them.

Knows nothing of Parquet: it is given columns as numpy and bytes.
"""

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.records import MAX_PIXELS, MAX_SIDE, OK

ROUNDED = 1e-6  # by which a share may pass 1


def check_values(table: Any) -> None:
    """Check a table of rows, whichever columns it has. Raises ValueError that names the first impossible one."""
    names = set(table.column_names)
    ok = np.array([status == OK for status in table["status"].to_pylist()]) if "status" in names else None
    sides = {name: _numbers(table[name]) for name in ("width", "height") if name in names}
    for name, values in sides.items():
        if ok is not None and not np.all((values[ok] >= 1) & (values[ok] <= MAX_SIDE)):
            raise ValueError(f"damaged rows: a {name} of {values[ok].max():.0f} pixels")
    if "quality" in names:
        _check_shares("quality", _numbers(table["quality"].drop_null()))
    if "segments" in names:
        _check_segments(table, sides)
    if "label_map" in names:
        _check_pngs(table["label_map"].to_pylist(), sides)


class Places:
    """Where the rows of a file may stand. windows: shard and number of each, of so many samples."""

    def __init__(self, windows: Iterable[tuple[str, int]], samples: int) -> None:
        self._windows, self._samples = frozenset(windows), samples
        self._shard, self._index = "", -1  # of the last row

    def check(self, table: Any) -> None:
        """Check the next rows, if they tell their place. Raises ValueError for one of another window, or twice."""
        if not table.num_rows or not {"shard", "index"} <= set(table.column_names):
            return
        shards, indices = table["shard"].to_pylist(), table["index"].to_numpy()
        before, last = [self._shard, *shards], np.concatenate(([self._index], indices[:-1]))
        twice = [row for row in np.flatnonzero(indices <= last) if before[row] == shards[row]]
        foreign = {*zip(shards, (indices // self._samples).tolist(), strict=True)} - self._windows
        if twice or foreign:
            raise ValueError(f"damaged rows: index {indices[twice[0]] if twice else indices[0]} does not belong here")
        self._shard, self._index = shards[-1], indices[-1]


def _numbers(column: Any) -> Any:
    values = column.to_numpy() if hasattr(column, "chunks") else column.to_numpy(zero_copy_only=False)
    return values.astype(np.float64)  # null is NaN


def _check_shares(name: str, values: Any) -> None:
    if not np.all((values >= -ROUNDED) & (values <= 1 + ROUNDED)):  # NaN is neither
        raise ValueError(f"damaged rows: a {name} that is not in [0, 1]")


def _check_segments(table: Any, sides: dict[str, Any]) -> None:
    column = table["segments"].combine_chunks()
    found, owner = column.flatten(), column.value_parent_indices().to_numpy(zero_copy_only=False)
    lengths = np.nan_to_num(_numbers(column.value_lengths())) if len(column) else np.empty(0)
    if "num_segments" in table.column_names:
        counts = _numbers(table["num_segments"])
        if np.any((counts != lengths) & ~np.isnan(counts)):
            raise ValueError("damaged rows: num_segments and segments differ")
    ids, areas = _numbers(found.field("id")), _numbers(found.field("area"))
    if not np.all((ids >= 0) & (ids < lengths[owner])) or len(np.unique(owner * (MAX_SIDE + 1) + ids)) < len(ids):
        raise ValueError("damaged rows: ids of segments are not 0 onwards")
    _check_shares("score", _numbers(found.field("score").drop_null()))
    boxes = found.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
    most = [sides[name][owner] if name in sides else MAX_SIDE for name in ("width", "height")]
    inside = np.all(boxes >= 0, axis=1) if len(boxes) == len(ids) else np.zeros(1, bool)
    if not np.all(inside) or np.any((boxes[:, 0] + boxes[:, 2] > most[0]) | (boxes[:, 1] + boxes[:, 3] > most[1])):
        raise ValueError("damaged rows: the box of a segment is outside its image")
    if not np.all((areas >= 0) & (areas <= most[0] * most[1])):
        raise ValueError("damaged rows: a segment is larger than its image")


def _check_pngs(maps: Iterable[bytes | None], sides: dict[str, Any]) -> None:
    for row, data in enumerate(maps):
        if data is None or data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:  # what is no PNG is never decoded
            continue
        size = struct.unpack(">II", data[16:24])
        most = [sides[name][row] if name in sides else MAX_SIDE for name in ("width", "height")]
        if not (1 <= size[0] <= most[0] and 1 <= size[1] <= most[1]) or size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"damaged rows: a label map of {size[0]} x {size[1]} pixels, larger than its image")
