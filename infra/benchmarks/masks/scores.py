"""Scores of segments against their IoU: the prior fitted to generated scenes, and every score measured on photos.

    python infra/benchmarks/masks/scores.py FOLDER --model tiny --model /models/dinov2-small \
        --tune bsds-train-00000.tar --photos 'bsds-train-{00001..00003}.tar'

Segments are those of one cut of each image's tree; their IoU is that with the best region, the mean over annotators.
The prior is fitted to scenes drawn for it, of all models together at three cuts, and to no photo. What was measured of
a model's segments is kept in FOLDER. Intervals: images drawn again with replacement.
"""

import argparse
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr

sys.path.insert(0, str(Path(__file__).parents[3]))

from styles import Sample, samples

from diffseg import DiffSeg, SegmentConfig
from diffseg.cut import Cut, segmentation
from diffseg.evaluation.bootstrap import DRAWS, LEVEL
from diffseg.evaluation.calibration import MATCHED, auroc, best_ious, calibration_error, fit, out_of_fold
from diffseg.evaluation.scores import whole_view
from diffseg.prior import columns, prior
from infra.scenes.scene import KINDS, draw_scene
from pipeline.evaluation.calibrate import columns_of

SEED = 20261128  # of the scenes that the prior is fitted to
SIZES = ((256, 256), (320, 214), (214, 320))
CUTS, CUT = (4, 8, 16), 16  # segments: of scenes, of photos
LABELLED = 20  # images that a calibration is given
FIGURES = ("AUROC", "small", "middle", "large", "mean of the three", "Spearman", "ECE", "kept half minus all")

Table = dict[str, np.ndarray]  # columns of segments; `image` numbers their images


def scenes(count: int) -> Iterator[Sample]:
    """Scenes that nothing else is trained or measured on."""
    for index in range(count):
        random = np.random.default_rng([SEED, index])
        scene = draw_scene(random, SIZES[index % len(SIZES)], KINDS[index % len(KINDS)])
        yield Sample(f"scene-{index}", scene.image, [scene.truth])


def measured(model: str, given: Iterable[Sample], cuts: Iterable[int], kept: Path) -> Table:
    """The segments of all images that have two at least."""
    if not kept.exists():
        segmenter, parts = DiffSeg.from_pretrained(model, SegmentConfig(tree=True)), []
        for number, sample in enumerate(given):
            [found] = segmenter.segment([sample.image])
            for count in cuts:
                of_leaf = Cut(segments=count).of(found.tree)
                at_cut = segmentation(found.leaf_map, found.tree, of_leaf)
                if len(at_cut.segments) < 2:
                    continue
                nodes = found.tree.features()[found.tree.nodes_of(of_leaf)]
                view = whole_view(*sample.truths[0].shape).sample(at_cut.label_map)
                shapes = np.array([(each.area, *each.box) for each in at_cut.segments])
                part = columns(nodes, shapes[:, 0], shapes[:, 1:])
                part |= {"iou": best_ious(view, sample.truths, len(nodes)), "image": np.full(len(nodes), number)}
                part |= {"prior": prior(nodes, shapes[:, 0], shapes[:, 1:])}
                part |= {"columns": columns_of([asdict(each) for each in at_cut.segments])}
                parts.append({name: column[np.isfinite(part["iou"])] for name, column in part.items()})
        kept.write_bytes(pickle.dumps({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}))
    return pickle.loads(kept.read_bytes())


def fitted(tables: list[Table]) -> dict[str, float]:
    """Coefficients of the prior: a logistic regression of the IoU, each with the sign that it means."""
    bounds = {"margin": (0, None), "stability": (0, None), "log_area": (0, None), "elongation": (None, 0)}
    bounds |= {"contrast": (0, None), "log_compactness": (0, None)}
    given = np.hstack([np.vstack([*(table[name] for name in bounds), np.ones(len(table["iou"]))]) for table in tables])
    ious = np.concatenate([table["iou"] for table in tables])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        linear = weights @ given
        gradient = given @ (1 / (1 + np.exp(-linear)) - ious) / len(ious)
        return float((np.logaddexp(0, linear) - ious * linear).mean()), gradient

    weights = minimize(loss, np.zeros(len(given)), jac=True, bounds=[*bounds.values(), (None, None)]).x
    return dict(zip([*bounds, "constant"], weights.round(3).tolist(), strict=True))


def figures(score: np.ndarray, table: Table, chosen: np.ndarray) -> np.ndarray:
    """FIGURES of some segments; small, middle and large are AUROC within the thirds by area."""
    score, ious = score[chosen], table["iou"][chosen]
    third = (rankdata(table["log_area"][chosen], method="ordinal") - 1) * 3 // len(score)
    inside = [auroc(score[third == each], ious[third == each] > MATCHED) for each in range(3)]
    kept = ious[rankdata(score, method="ordinal") > len(score) / 2].mean() - ious.mean()
    rest = (np.mean(inside), spearmanr(score, ious).statistic, calibration_error(score, ious), kept)
    return np.array([auroc(score, ious > MATCHED), *inside, *rest])


def with_intervals(measure: Callable[[np.ndarray], np.ndarray], table: Table) -> list[str]:
    """Figures of all segments in Markdown."""
    of_image = [np.flatnonzero(table["image"] == image) for image in np.unique(table["image"])]
    random = np.random.default_rng(0)
    drawn = [[of_image[image] for image in random.integers(len(of_image), size=len(of_image))] for _ in range(DRAWS)]
    ends = np.nanquantile([measure(np.concatenate(each)) for each in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [f"{v:.3f} ({a:.3f} to {b:.3f})" for v, a, b in zip(measure(np.concatenate(of_image)), *ends, strict=True)]


def report(table: Table, tune: Table) -> None:
    """A row a score, then each score minus the margin alone, on the same draws of images."""
    twenty = np.isin(tune["image"], np.random.default_rng(0).permutation(np.unique(tune["image"]))[:LABELLED])
    few = fit(tune["columns"][twenty], tune["iou"][twenty])
    scores = {
        "margin": table["margin"],
        "area": np.exp(table["log_area"]),
        "margin x stability, as greedy segments are scored": table["margin"] * table["stability"],
        "prior": table["prior"],
        f"calibrated with {LABELLED} images": few.predict(table["columns"]),
        "calibrated, grouped 5-fold": out_of_fold(table["columns"], table["iou"], table["image"]),
    }
    lines = [["", *FIGURES], ["---"] * (1 + len(FIGURES))]
    for name, score in scores.items():
        lines.append([name, *with_intervals(lambda chosen, of=score: figures(of, table, chosen), table)])
    for name in list(scores)[2:]:

        def gain(chosen: np.ndarray, score: np.ndarray = scores[name]) -> np.ndarray:
            return figures(score, table, chosen) - figures(table["margin"], table, chosen)

        lines.append([f"{name}, minus margin", *with_intervals(gain, table)])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))  # noqa: T201


def main() -> None:
    """Fit the prior to scenes, then measure every score on photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--tune", required=True, help="Shards of photos that calibrations are fitted to.")
    parser.add_argument("--photos", required=True, help="Shards of photos that scores are measured on.")
    parser.add_argument("--scenes", type=int, default=120, help="That the prior is fitted to; 0: it is not.")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    kept = {model: str(given.folder / Path(model).name) for model in given.model}
    if given.scenes:
        drawn = [measured(model, scenes(given.scenes), CUTS, Path(f"{at}-scenes.pkl")) for model, at in kept.items()]
        print("prior:", fitted(drawn))  # noqa: T201
    for model, at in kept.items():
        tune, photos = (
            measured(model, samples("photos", shards), [CUT], Path(f"{at}-{of}.pkl"))
            for of, shards in (("tune", given.tune), ("photos", given.photos))
        )
        print(f"\n{Path(model).name}: {len(photos['iou']):,} segments")  # noqa: T201
        report(photos, tune)


if __name__ == "__main__":
    main()
