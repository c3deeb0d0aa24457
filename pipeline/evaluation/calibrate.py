"""Calibration of a run: `predicted_iou` of every segment, from a few of its images whose truth is known.

The prediction is kept as a derived table, its coefficients in the table's note: `extend` needs no truth again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from diffseg.cut import Cut
from diffseg.evaluation.calibration import MATCHED, Calibration, auroc, best_ious, calibration_error, fit, out_of_fold
from diffseg.evaluation.scores import View
from diffseg.prior import GEOMETRY, geometry
from diffseg.types import Float
from pipeline import documents
from pipeline.derived.note import Note, read_note, write
from pipeline.errors import ConfigError
from pipeline.evaluation.predictions import LabelMap, measure_labelled
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.score import IGNORED, LeftOut, Prediction
from pipeline.evaluation.truth import Truth
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.filter import PREDICTED

FEATURES = ("logit of the score", *GEOMETRY)
EDGE = 1e-3  # of scores: their logit is taken between this and one less this


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibrated run. auroc, error: of segments predicted from other images than their own; NaN where undefined."""

    table: str
    images: int
    segments: int
    windows: int
    left_out: tuple[str, ...] = ()
    auroc: float = float("nan")
    auroc_of_score: float = float("nan")
    error: float = float("nan")


def columns_of(segments: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "S F"]:
    """FEATURES of all segments of an image, as a row has them."""
    scores = np.array([each["score"] for each in segments], float).clip(EDGE, 1 - EDGE)
    areas = np.array([each["area"] for each in segments], int)
    boxes = np.array([each["box"] for each in segments], int).reshape(-1, 4)
    return np.hstack([np.log(scores / (1 - scores))[:, None], geometry(areas, boxes)])


def calibrate(ledger: Ledger, truth: Truth, protocol: Protocol, name: str, command: str) -> Calibrated:
    """Fit to the images of a truth that the run has, and predict the IoU of all segments of the run.

    command: by which a user does the same again. Raises ConfigError where fewer than two images can be used.
    """
    measured = measure_labelled(ledger, truth, protocol, ["segments"], _measured)
    columns, ious = (np.concatenate(part) for part in zip(*measured.images, strict=True))
    fitted = fit(columns, ious)
    images, sizes = len(measured.images), [len(each[1]) for each in measured.images]
    predicted = out_of_fold(columns, ious, np.repeat(np.arange(images), sizes))
    cut = asdict(ledger.cut) if ledger.cut else None
    fields = {"features": FEATURES, **asdict(fitted), "images": images, "cut": cut}
    fields["truth_sha256"] = measured.truth_sha256
    shown = str(ledger.cut) if cut else None
    note = Note(command=command, columns={PREDICTED: "float32"}, parameters=fields, cut=shown)
    done, revision = write(ledger, name, note, partial(_values, ledger, fitted))
    return Calibrated(
        table=f"{name}/{revision}",
        images=images,
        segments=len(ious),
        windows=len(done.places),
        left_out=measured.left_out,
        auroc=auroc(predicted, ious > MATCHED),
        auroc_of_score=auroc(columns[:, 0], ious > MATCHED),
        error=calibration_error(predicted, ious),
    )


def extend(ledger: Ledger, name: str) -> Calibrated:
    """Predict the IoU of segments in windows that a calibration does not have, by its own coefficients and at its cut.

    Raises ConfigError where there is none.
    """
    note, _ = read_note(ledger, name)
    fitted, ledger.cut = _fitted(note)
    done, revision = write(ledger, name, note, partial(_values, ledger, fitted))
    return Calibrated(f"{name}/{revision}", note.parameters["images"], 0, len(done.places) - len(note.places))


def _fitted(note: Note) -> tuple[Calibration, Cut | None]:
    try:
        if tuple(note.parameters["features"]) != FEATURES:
            raise ValueError(f"it was fitted to {', '.join(note.parameters['features'])}")
        fitted = documents.validated(Calibration, {k: note.parameters[k] for k in Calibration.__slots__})
        return fitted, Cut(**note.parameters["cut"]) if note.parameters["cut"] else None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a derived table that this version's calibrate did not make: {error}") from error


def _values(ledger: Ledger, fitted: Calibration, window: WindowObject) -> Iterator[Mapping[str, Any]]:
    for row in ledger.rows(["shard", "index", "segments"], windows=[window]):
        if segments := row["segments"]:
            found = fitted.predict(columns_of(segments)).tolist()
            for segment, value in zip(segments, found, strict=True):
                yield {"index": row["index"], "segment": segment["id"], PREDICTED: value}


def _measured(
    labelled: Prediction, label_map: LabelMap, truths: Sequence[LabelMap], view: View
) -> tuple[Float[np.ndarray, "S F"], Float[np.ndarray, " S"]]:
    """FEATURES and IoU of each segment of an image whose truth is not ignored."""
    segments = labelled.kept["segments"]
    if len(segments) < 2:
        raise LeftOut("one segment, which tells nothing apart")
    ious = best_ious(view.sample(label_map), truths, len(segments))
    known = np.isfinite(ious)
    if not known.any():
        raise LeftOut(IGNORED)
    return columns_of(segments)[known], ious[known]
