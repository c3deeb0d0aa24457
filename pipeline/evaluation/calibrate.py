"""Calibration of a run: `predicted_iou` of every segment, from a few of its images whose truth is known.

The prediction is kept as a derived table, its coefficients in the table's note: `extend` needs no truth again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diffseg.cut import Cut
from diffseg.evaluation.calibration import MATCHED, Calibration, auroc, best_ious, calibration_error, fit, out_of_fold
from diffseg.prior import GEOMETRY, geometry
from diffseg.types import Float
from pipeline import documents
from pipeline.derived.note import Note, read_note
from pipeline.derived.write import write
from pipeline.errors import ConfigError
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.score import IGNORED, RUN, LeftOut, Prediction, Work, decode_truths, label_map_of
from pipeline.evaluation.truth import Truth, TruthSample
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
    samples = [replace(sample, image=None) for sample in truth]
    names = frozenset(sample.key.rpartition("/")[2] for sample in samples)
    predictions = Predictions(ledger, protocol, segments=True, only=names)
    found = {sample.key: _measured(sample, predictions[sample.key], protocol) for sample in samples}
    predictions.check_some_key_matches()
    used = {key: each for key, each in found.items() if not isinstance(each, LeftOut)}
    left_out = [
        f"{key}: {each.reason} {each.detail}".strip() for key, each in found.items() if isinstance(each, LeftOut)
    ]
    if len(used) < 2:
        why = "".join(f": {line}" for line in left_out[:1])
        raise ConfigError(f"{ledger}: two images with truth are needed at least, {len(used)} can be used{why}")
    columns, ious = (np.concatenate(part) for part in zip(*used.values(), strict=True))
    fitted = fit(columns, ious)
    predicted = out_of_fold(columns, ious, np.repeat(np.arange(len(used)), [len(each[1]) for each in used.values()]))
    truths = (data for each in samples if each.key in used for data in (each.key.encode(), *each.label_maps))
    sha256 = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in truths)).hexdigest()
    cut = asdict(ledger.cut) if ledger.cut else None
    fields = {"features": FEATURES, **asdict(fitted), "images": len(used), "truth_sha256": sha256, "cut": cut}
    shown = str(ledger.cut) if cut else None
    note = Note(command=command, columns={PREDICTED: "float32"}, parameters=fields, cut=shown)
    done, revision = write(ledger, name, note, partial(_values, ledger, fitted))
    return Calibrated(
        table=f"{name}/{revision}",
        images=len(used),
        segments=len(ious),
        windows=len(done.places),
        left_out=tuple(left_out),
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
    sample: TruthSample, labelled: Prediction | LeftOut, protocol: Protocol
) -> tuple[Float[np.ndarray, "S F"], Float[np.ndarray, " S"]] | LeftOut:
    """FEATURES and IoU of each segment of an image whose truth is not ignored."""
    truths = decode_truths(sample, protocol)
    if isinstance(labelled, LeftOut):
        return labelled
    if isinstance(truths, LeftOut):
        return truths
    label_map = label_map_of(RUN, Work(sample, {RUN: labelled}), truths[0].shape)
    if isinstance(label_map, LeftOut):
        return label_map
    if len(labelled.segments) < 2:
        return LeftOut("one segment, which tells nothing apart")
    view = protocol.view(*truths[0].shape)
    ious = best_ious(view.sample(label_map), [view.sample(truth) for truth in truths], len(labelled.segments))
    known = np.isfinite(ious)
    if not known.any():
        return IGNORED
    return columns_of(labelled.segments)[known], ious[known]
