"""A run whose scores are the IoU that a calibration predicts: what every reader sees that is given `--calibration`."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from diffseg.cut import Cut
from pipeline.derived.join import DerivedTable
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.table.filter import PREDICTED

_CHANGED = {"segments", "quality", PREDICTED}
logger = logging.getLogger(__name__)


class CalibratedLedger(Ledger):
    """A run read with a calibration.

    Rows have the predicted IoU as `score` of each segment, and its mean by area as `quality` and as `predicted_iou`:
    null where there is one segment or the table lacks the window, whose scores are then 0.
    """

    table: DerivedTable

    @property
    def remade(self) -> frozenset[str]:
        """See `Ledger.remade`."""
        return super().remade | _CHANGED

    def needed(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """See `Ledger.needed`."""
        if columns is not None and _CHANGED & set(columns):
            columns = list({*columns, "shard", "index", "segments"} - {PREDICTED})
        return super().needed(columns)

    def at_cut(self, row: dict[str, Any], cut: Cut | None = None) -> dict[str, Any]:
        """See `Ledger.at_cut`."""
        row = super().at_cut(row, cut)
        if "segments" not in row:
            return row
        segments = row["segments"] or ()
        found = [values[PREDICTED] for values in self.table.of(row)]
        mean = None
        if len(found) > 1 and None not in found:
            areas = [segment["area"] for segment in segments]
            mean = math.fsum(area * value for area, value in zip(areas, found, strict=True)) / sum(areas)
        scored = [{**segment, "score": value or 0.0} for segment, value in zip(segments, found, strict=True)]
        return {**row, "segments": row["segments"] and scored, "quality": mean, PREDICTED: mean}


def open_run(url: str, cut: Cut | None = None, calibration: str | None = None) -> Ledger:
    """Open a run at a cut, with a calibration by NAME or NAME/REVISION; None: as it was labelled.

    Raises ConfigError where there is no such run, cut or table, or the table is of other segments.
    """
    if calibration is None:
        return Ledger.open(url, cut=cut)
    ledger = CalibratedLedger.open(url, cut=cut)
    ledger.table = table = DerivedTable(ledger, calibration, [PREDICTED])
    ledger.calibration = f"{table.name}/{table.revision}"
    if table.note.cut != (str(ledger.cut) if ledger.cut else None):
        made = f"at the cut {table.note.cut}" if table.note.cut else "as they were labelled"
        raise ConfigError(f"{table} is of segments {made}: read the run so, or calibrate it at the other cut")
    if table.outdated:
        logger.warning("%s", table.outdated)
    return ledger
