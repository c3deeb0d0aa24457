"""The script behind infra/benchmarks/instances.md: scenes hold what they promise, and recall is the literal one."""

from dataclasses import replace

import numpy as np
import pytest

from diffseg import DiffSeg
from diffseg.cut import components
from diffseg.types import IGNORE
from infra.benchmarks.instances import THRESHOLDS, recall, recalls, touching
from tests.hierarchy.test_results import TREE, Model


@pytest.mark.parametrize("number", range(1))
def test_objects_of_a_scene_touch_so_that_components_cannot_part_them(number):
    scene = touching(number)
    assert (touching(number).image == scene.image).all()
    assert (touching(number, tune=True).truth != scene.truth).any()
    objects = len(np.unique(scene.truth)) - 1
    assert 2 <= objects <= 7
    assert len(components((scene.truth > 0).astype(np.int32) - 1)[1]) < objects


def test_recall_counts_an_object_at_every_iou_that_an_instance_reaches():
    truth = np.repeat([[0, 0, 1, 1, 1, 1, 1, 2, 2, 2]], 4, 0)
    found = np.repeat([[0, 0, 5, 5, 5, 5, IGNORE, 3, 3, 3]], 4, 0)
    assert recalls(truth, truth).tolist() == [1.0] * 10
    assert recalls(found, truth).tolist() == [(1 + (threshold <= 0.8)) / 2 for threshold in THRESHOLDS]
    assert recalls(np.full_like(truth, IGNORE), truth).tolist() == [0.0] * 10


def test_a_table_has_a_line_for_each_kind_of_instances():
    segmenter = DiffSeg(Model(replace(TREE, ridges=True)))
    said = recall(segmenter, (touching(number) for number in range(1))).splitlines()
    assert [line.split("|")[1].strip() for line in said[:5]] == [
        "instances",
        "---",
        "components",
        "ridges",
        "best of leaves",
    ]
    assert said[-1].startswith("1 images")
