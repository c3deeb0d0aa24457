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
from pipeline.evaluation.score import RUN, LeftOut, Prediction, Work, decode_truths, label_map_of
from pipeline.evaluation.truth import Truth, TruthSample
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.filter import PREDICTED

FEATURES = ("logit of the score", *GEOMETRY)
EDGE = 1e-3  # of scores: their logit is taken between this and one less this


@dataclass(frozen=True, slots=True, kw_only=True)
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
    keys = frozenset(sample.key.rpartition("/")[2] for sample in samples)
    predictions = Predictions(ledger, protocol, segments=True, only=keys)
    digest, left_out = hashlib.sha256(), list[str]()
    columns, ious, images = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for number, sample in enumerate(samples):
        found = _measured(sample, predictions[sample.key], protocol)
        if isinstance(found, LeftOut):
            left_out.append(f"{sample.key}: {found.reason} {found.detail}".strip())
            continue
        for data in (sample.key.encode(), *sample.label_maps):
            digest.update(hashlib.sha256(data).digest())
        known = np.isfinite(found[1])
        columns.append(found[0][known])
        ious.append(found[1][known])
        images.append(np.full(int(known.sum()), number))
    predictions.check_some_key_matches()
    if len(images) < 2:
        why = f": {left_out[0]}" if left_out else ""
        raise ConfigError(f"{ledger}: two images with truth are needed at least, {len(images)} can be used{why}")
    given, wanted, owners = np.concatenate(columns), np.concatenate(ious), np.concatenate(images)
    fitted, predicted = fit(given, wanted), out_of_fold(given, wanted, owners)
    fields = {"features": FEATURES, **asdict(fitted), "images": len(images), "truth_sha256": digest.hexdigest()}
    cut = asdict(ledger.cut) if ledger.cut else None
    note = Note(
        command=command,
        columns={PREDICTED: "float32"},
        parameters=fields | {"cut": cut},
        cut=str(ledger.cut) if cut else None,
    )
    done, revision = write(ledger, name, note, partial(_values, ledger, fitted))
    return Calibrated(
        table=f"{name}/{revision}",
        images=len(images),
        segments=len(wanted),
        windows=len(done.places),
        left_out=tuple(left_out),
        auroc=auroc(predicted, wanted > MATCHED),
        auroc_of_score=auroc(given[:, 0], wanted > MATCHED),
        error=calibration_error(predicted, wanted),
    )


def extend(ledger: Ledger, name: str) -> Calibrated:
    """Predict the IoU of segments in windows that a calibration does not have, by its own coefficients, at its own cut.

    ledger: read at that cut from then on.
    Raises ConfigError where there is none.
    """
    note, _ = read_note(ledger, name)
    fitted, ledger.cut = _fitted(note)
    done, revision = write(ledger, name, note, partial(_values, ledger, fitted))
    return Calibrated(
        table=f"{name}/{revision}",
        images=int(note.parameters["images"]),
        segments=0,
        windows=len(done.places) - len(note.places),
    )


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
    """FEATURES and IoU of each segment of an image; NaN where its truth is ignored."""
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
    return columns_of(labelled.segments), ious
