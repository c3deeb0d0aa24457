"""`diffseg evaluate` by category over a data set: held to the published definitions, computed literally."""

import contextlib
import io
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diffseg.evaluation.matching import counts_of
from diffseg.evaluation.panoptic import panoptic_quality, region_pairs, regions_by
from diffseg.types import IGNORE
from jobs.shared import cli
from pipeline.datasets.samples import instances_of
from pipeline.derived.note import Note, write
from pipeline.evaluation.recall import MOST, Recalled, average_recall, recalled
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.evaluation.test_evaluate import labels_of, measured, refused, truth_of
from tests.support.labelled import CUT, make_run
from tests.support.truths import png

unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
small = arrays(np.int64, (5, 6), elements=st.integers(-1, 2))
part = arrays(np.int64, (5, 6), elements=st.integers(0, 1))


def literal_panoptic(images, classes):
    """As panopticapi computes it: images of (prediction, truth), each a class and a part for every pixel."""
    pqs, sqs, rqs = [], [], []
    for class_ in range(classes):
        iou_sum, tp, fp, fn = 0.0, 0, 0, 0
        for (kinds, parts), (truth, objects) in images:
            void = truth < 0
            ours = [(kinds == class_) & (parts == p) for p in np.unique(parts[kinds == class_])]
            theirs = [(truth == class_) & (objects == p) for p in np.unique(objects[truth == class_])]
            matched = set()
            for gt in theirs:
                hit = None
                for number, mask in enumerate(ours):
                    union = (mask & ~void).sum() + gt.sum() - (mask & gt).sum()
                    if (mask & gt).sum() / union > 0.5:
                        hit = number, (mask & gt).sum() / union
                if hit:
                    matched.add(hit[0])
                    iou_sum, tp = iou_sum + hit[1], tp + 1
                else:
                    fn += 1
            fp += sum(n not in matched and (mask & void).sum() / mask.sum() <= 0.5 for n, mask in enumerate(ours))
        if tp + fp + fn:
            pqs.append(iou_sum / (tp + fp / 2 + fn / 2))
            sqs.append(iou_sum / tp if tp else 0)
            rqs.append(tp / (tp + fp / 2 + fn / 2))
    return [np.mean(each) if each else np.nan for each in (pqs, sqs, rqs)]


@unhurried
@given(
    st.lists(st.tuples(st.tuples(small, part), st.tuples(small, part)), min_size=1, max_size=3),
    st.permutations(range(3)),
)
def test_panoptic_quality_is_that_of_its_definition_whatever_cluster_a_class_gets(images, class_of):
    pairs = [region_pairs(predicted, truth, 3, 3) for predicted, truth in images]
    meaning = np.array([*class_of, IGNORE])
    renamed = [((meaning[kinds], parts), truth) for (kinds, parts), truth in images]
    quality = panoptic_quality(pairs, np.array(class_of))
    assert [each.value for each in quality.values()] == pytest.approx(literal_panoptic(renamed, 3), nan_ok=True)


def test_a_cluster_may_have_no_class_and_several_one():
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    whole = np.zeros_like(truth)
    clusters = np.array([[0, 0, 0, 0, 1, 1, 1, 2]])
    pairs = [region_pairs((clusters, whole), (truth, whole), 3, 2)]

    def quality(class_of):
        return [each.value for each in panoptic_quality(pairs, np.array(class_of)).values()]

    assert quality([0, 1, IGNORE]) == pytest.approx([(1 + 0.75) / 2, 0.875, 1])
    assert quality([0, 1, 1]) == pytest.approx([(1 + 0.5) / 2, 0.875, (1 + 2 / 3) / 2])
    assert quality([0]) == pytest.approx([0.5, 0.5, 0.5])
    pairs = [region_pairs((clusters * 0 - 1, whole), (truth * 0 - 1, whole), 3, 2)]
    assert np.isnan(quality([0, 1, 1])).all()


def test_intervals_of_quality_and_recall_are_of_images_drawn_again_and_figures_of_all_of_them():
    random, class_of = np.random.default_rng(5), np.array([0, 1, 2])
    images = []
    for _ in range(12):
        kinds, others, parts = (random.integers(low, high, (6, 6)) for low, high in ((-1, 3), (-1, 3), (0, 2)))
        images.append(((kinds, parts), (np.where(random.random((6, 6)) < 0.8, kinds, others), parts)))
    pairs = [region_pairs(predicted, truth, 3, 3) for predicted, truth in images]
    again = np.random.default_rng(0)  # as the intervals are drawn
    drawn = [again.integers(12, size=12) for _ in range(1000)]
    values = np.array([literal_panoptic([images[at] for at in each], 3) for each in drawn[:200]])
    found = panoptic_quality(pairs, class_of)
    for at, each in enumerate(found.values()):
        assert each.low < each.value < each.high
        assert np.quantile(values[:, at], [0.025, 0.975]) == pytest.approx([each.low, each.high], abs=0.03)
    objects = [Recalled(np.full((3, 10), int(n)), 4) for n in random.integers(0, 5, 12)]
    ends = np.quantile([np.mean([objects[at].found[0, 0] for at in each]) / 4 for each in drawn], [0.025, 0.975])
    recall = average_recall(objects)
    assert [recall["ar_1_low"], recall["ar_1_high"]] == pytest.approx(ends)


def literal_recall(images):
    """COCO's own evaluation of the whole data set, without categories."""
    truth: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    found: list[dict[str, Any]] = []
    number = 0
    for image, (instances, scores, objects) in enumerate(images, start=1):
        truth["images"].append({"id": image, "height": objects.shape[0], "width": objects.shape[1]})
        for ids, into in ((objects, truth["annotations"]), (instances, found)):
            for id_ in np.unique(ids[ids >= 0]):
                number += 1
                rle = masks.encode(np.asfortranarray(ids == id_, dtype=np.uint8))
                into.append({"id": number, "image_id": image, "category_id": 1, "segmentation": rle, "iscrowd": 0})
                into[-1] |= {"area": int((ids == id_).sum()), "bbox": [0, 0, 1, 1]}
                into[-1] |= {"score": scores[id_]} if into is found else {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        own = COCOeval(coco, coco.loadRes(found), "segm")
        own.params.maxDets = [1, 100, 1000]
        own.evaluate()
        own.accumulate()
    return own.eval["recall"][:, 0, 0].mean(0)


def test_average_recall_is_that_of_pycocotools_on_the_whole_data_set():
    random, images, total = np.random.default_rng(3), [], []
    for _ in range(4):
        objects = random.integers(-1, 6, (4, 5)).repeat(4, 0).repeat(4, 1).astype(np.int32)
        instances = np.where(random.random(objects.shape) < 0.97, objects, random.integers(-1, 9, objects.shape))
        instances, found = regions_by(np.minimum(instances, 0), np.maximum(instances, 0))
        objects, _ = regions_by(np.minimum(objects, 0), np.maximum(objects, 0))
        images.append((instances, (random.permutation(len(found)) / 200).tolist(), objects))
        total.append(recalled(*images[-1]))
    average = average_recall(total)
    assert [average[f"ar_{most}"] for most in MOST] == pytest.approx(literal_recall(images))
    assert 0 < average["ar_1"] < average["ar_100"] <= average["ar_1000"]
    nothing = np.full((3, 3), IGNORE)
    assert set(average_recall([recalled(nothing, [], objects)]).values()) == {0}
    assert np.isnan([*average_recall([recalled(objects, [1.0] * (objects.max() + 1), nothing)]).values()]).all()


def literal_counts(table, class_of):
    tp = [sum(table[c][k] for k in range(len(class_of)) if class_of[k] == c) for c in range(len(table))]
    claimed = [
        sum(table[i][k] for k in range(len(class_of)) if class_of[k] == c for i in range(len(table)))
        for c in range(len(table))
    ]
    return (
        tp,
        [a - b for a, b in zip(claimed, tp, strict=True)],
        [sum(row) - t for row, t in zip(table, tp, strict=True)],
    )


@given(arrays(np.int64, (2, 3), elements=st.integers(0, 9)))
def test_clusters_may_share_a_class(table):
    for class_of in product((-1, 0, 1), repeat=3):
        found = counts_of(table, np.zeros(2, np.int64), np.array(class_of))
        assert [found.tp.tolist(), found.fp.tolist(), found.fn.tolist()] == list(
            literal_counts(table.tolist(), class_of)
        )


SKY, TREE = [[0] * 6] * 2, [[1] * 3 + [2] * 3] * 2  # the truth: sky over two trees
CLASSES = np.array(SKY + [[1] * 6] * 2)
OBJECTS = np.array([[0] * 6] * 2 + [[1] * 3 + [2] * 3] * 2)
LABELS = {"a": np.array(SKY + TREE), "b": np.array(SKY + [[1] * 5 + [2]] * 2)}  # of b the second tree is lost


def categorised(run, names, of, things=None):
    """A table of categories. of: the category of each segment, by its id; None: unknown."""
    ledger = Ledger.open(run)

    def values(window):
        for row in ledger.rows(["index", "segments"], windows=[window]):
            for each in row["segments"]:
                yield {"index": row["index"], "segment": each["id"], "category": of[each["id"]]}

    table = [{"id": id_, "name": name, "thing": (things or {}).get(name)} for id_, name in enumerate(names, start=1)]
    write(ledger, "kinds", Note(command="x", columns={"category": "int32"}, parameters={"categories": table}), values)
    return run


@pytest.fixture
def truth(tmp_path):
    files = {"seg.png": png(CLASSES), "objects.png": png(OBJECTS)}
    return truth_of(tmp_path, dict.fromkeys("ab", files))


def test_clusters_are_matched_once_for_all_images_and_by_majority(tmp_path, truth, capsys):
    run = categorised(labels_of(tmp_path, LABELS), ["x", "y", "z"], [2, 1, 3])
    arguments = (run, "--truth", truth, "--truth-key", "seg.png", "--classes", "2", "--categories", "kinds")
    found = measured(capsys, *arguments)["methods"]["run"]
    table = np.zeros((2, 3))
    for labels in LABELS.values():
        np.add.at(table, (CLASSES, np.array([1, 0, 2])[labels]), 1)
    best = max(permutations(range(3), 2), key=lambda chosen: sum(table[c, k] for c, k in enumerate(chosen)))
    iou = [table[c, k] / (table[c].sum() + table[:, k].sum() - table[c, k]) for c, k in enumerate(best)]
    assert found["by_category"].keys() == {"once", "majority"}
    assert found["dataset_matching"] == found["by_category"]["once"]
    assert found["dataset_matching"]["miou"] == pytest.approx(np.mean(iou))
    assert found["by_category"]["majority"]["miou"] == found["by_category"]["majority"]["accuracy"] == 1
    # y covers the sky of both images; x no more than half of the trees of a, and five sixths of b's; z has no class
    assert found["dataset_matching"]["pq"] == pytest.approx((1 + (5 / 6) / (1 + 0.5 + 0.5)) / 2)
    assert "average_recall" not in found
    assert cli.run(["evaluate", *arguments]) == 0
    told = capsys.readouterr().out
    assert "run, matched once for the whole data set: accuracy 0.833, mIoU 0.833, PQ" in told
    assert "run, each cluster as the class of most of its pixels: accuracy 1.000, mIoU 1.000, PQ" in told


def test_categories_named_as_classes_are_not_matched(tmp_path, truth, capsys):
    run = categorised(labels_of(tmp_path, LABELS), ["1", "0"], [1, 2, 1], {"1": True, "0": False})
    arguments = (run, "--truth", truth, "--truth-key", "seg.png", "--truth-instances", "objects.png", "--classes", "2")
    found = measured(capsys, *arguments, "--categories", "kinds", "--instances", "segments")["methods"]["run"]
    assert found["by_category"].keys() == {"names"}
    assert found["dataset_matching"] is None
    table = np.zeros((2, 2))
    for labels in LABELS.values():
        np.add.at(table, (CLASSES, np.array([1, 0, 1])[labels]), 1)
    assert found["by_category"]["names"]["accuracy"] == pytest.approx(np.trace(table) / table.sum())
    # both skies are taken for trees, and both first trees for sky; of the second trees that of a alone is found
    wanted = (0 + 1 / (1 + 3 / 2 + 3 / 2)) / 2, (0 + 1) / 2, (0 + 1 / 4) / 2
    assert [found["by_category"]["names"][name] for name in ("pq", "sq", "rq")] == pytest.approx(wanted)
    assert found["average_recall"]["ar_1"] == pytest.approx(recall_of(1))
    assert found["average_recall"]["ar_100"] == pytest.approx(recall_of(3)) == found["average_recall"]["ar_1000"]


def recall_of(most):
    """Of two trees an image, where segments of equal score count in order: sky, the first tree, the second."""
    best = []
    for labels, tree in product(LABELS.values(), (1, 2)):
        there = tree == OBJECTS
        best.append(max(((labels == id_) & there).sum() / ((labels == id_) | there).sum() for id_ in range(most)))
    return np.mean([np.mean([iou >= threshold for iou in best]) for threshold in np.linspace(0.5, 0.95, 10)])


def test_things_are_paired_one_by_one_and_stuff_as_a_whole(tmp_path, truth, capsys):
    run = categorised(labels_of(tmp_path, LABELS), ["0", "1"], [1, 2, 2], {"0": False, "1": True})
    arguments = (run, "--truth", truth, "--truth-key", "seg.png", "--classes", "2", "--categories", "kinds")
    whole = measured(capsys, *arguments)["methods"]["run"]["by_category"]["names"]
    assert [whole[name] for name in ("accuracy", "miou", "pq", "sq", "rq")] == [1] * 5
    parted = measured(capsys, *arguments, "--truth-instances", "objects.png")["methods"]["run"]["by_category"]["names"]
    # of the trees of b the first has an IoU of 3/5, the second, a third of it, none
    trees = 2 + 3 / 5
    assert parted["pq"] == pytest.approx((1 + trees / (3 + 1 / 2 + 1 / 2)) / 2)
    assert parted["sq"] == pytest.approx((1 + trees / 3) / 2)
    assert parted["rq"] == pytest.approx((1 + 3 / 4) / 2)


def test_regions_are_objects_where_the_truth_has_no_instances_and_ridges_find_others(tmp_path, capsys):
    run = str(make_run(tmp_path, trees=CUT).store)
    rows = list(Ledger.open(run).rows())
    parts = {}
    for row in rows:
        labels = decode_label_map(row["label_map"])
        parts[row["key"]] = {kind: instances_of(kind, labels, row, labels)[0] for kind in ("components", "ridges")}
    truth = truth_of(
        tmp_path, {key: {"png": png(own["ridges"].repeat(2, 0).repeat(2, 1))} for key, own in parts.items()}
    )
    for kind in ("segments", "components", "ridges"):
        found = measured(
            capsys, run, "--truth", truth, "--instances", kind, "--processes", "1" if kind == "ridges" else "0"
        )
        said = found["methods"]["run"]["average_recall"]
        assert (said["ar_100"] == 1) is (kind == "ridges")
        assert 0 < said["ar_1"] < 0.5
    assert cli.run(["evaluate", run, "--truth", truth, "--instances", "ridges"]) == 0
    assert "AR100 1.000 (1.000 to 1.000), AR1000 1.000 (1.000 to 1.000) of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--truth-instances", "objects.png"], "--truth-instances are compared with --categories or --instances"),
        (["--categories", "kinds"], "--matching takes image, or dataset where the truth has classes"),
        (["--instances", "ridges"], "labelled without them (`diffseg label --ridges`)"),
        (["--instances", "blobs"], "--instances 'blobs': possible are segments, components, ridges"),
        (["--instances", "segments", "--truth-instances", "none.png"], "no usable instances in the truth"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, truth, capsys, flags, line):
    run = categorised(labels_of(tmp_path, LABELS), ["x", "y", "z"], [2, 1, 3])
    assert line in refused(capsys, run, "--truth", truth, "--truth-key", "seg.png", *flags)


def test_instances_are_of_a_run(truth, capsys):
    assert "are of a run: name that run" in refused(
        capsys, "--truth", truth, "--baseline", "kmeans", "--instances", "ridges"
    )
