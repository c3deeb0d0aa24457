"""Page of the worst images: predictions beside the truth."""

import logging
from collections.abc import Iterator
from io import BytesIO

import numpy as np

from diffseg.types import Integer, Segment, UInt8
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.score import Scorer, Work, decode_truths, label_map_of
from pipeline.gallery.html_page import GalleryItem, GalleryMap, GalleryPage, write_gallery
from pipeline.inputs import decode
from pipeline.records import OK

TRUTHS = 2  # annotators shown: more make pictures too small to see
logger = logging.getLogger(__name__)


def worst_page(evaluation: Evaluation, scorer: Scorer, name: str) -> bytes:
    """An HTML page of the images kept as the worst, the lowest figure first. name: of what was measured."""
    leading = scorer.protocol.leading
    page = GalleryPage(
        title=f"{name}: {len(evaluation.worst)} images with the lowest {leading}",
        measure=(leading, f"{leading} of the image against its truth, from 0 to 1"),
    )
    out = BytesIO()
    write_gallery(out, _items(evaluation, scorer), page)
    return out.getvalue()


def _items(evaluation: Evaluation, scorer: Scorer) -> Iterator[GalleryItem]:
    method = scorer.methods[0]
    for rank, (value, work) in enumerate(evaluation.worst):
        truths = decode_truths(work.truth, scorer.protocol)
        label_map = label_map_of(method, work, truths[0].shape)
        yield GalleryItem(
            key=work.truth.key,
            shard="",
            index=rank,
            status=OK,
            image=_photo(work),
            maps=(
                _map(label_map, f"{method}, {scorer.protocol.leading} {value:.3f}", value),
                *(_map(truth, f"truth {n} of {len(truths)}") for n, truth in enumerate(truths[:TRUTHS], 1)),
            ),
        )


def _photo(work: Work) -> UInt8[np.ndarray, "H W 3"] | None:
    try:
        return None if work.truth.image is None else decode.decode(work.truth.image)
    except decode.UndecodableImage as error:
        logger.debug("%s is shown without its photo: %s", work.truth.key, error)
        return None


def _map(label_map: Integer[np.ndarray, "H W"], caption: str, quality: float | None = None) -> GalleryMap:
    """Renumber ids from 0: regions of a truth may have any."""
    ids, labels, areas = np.unique(label_map, return_inverse=True, return_counts=True)
    ignored = int((ids < 0).sum())
    box = (0, 0, label_map.shape[1], label_map.shape[0])
    segments = tuple(Segment(i, int(area), box, 1.0) for i, area in enumerate(areas[ignored:]))
    return GalleryMap((labels.reshape(label_map.shape) - ignored).clip(-1).astype(np.int32), segments, quality, caption)
