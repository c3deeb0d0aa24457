import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from diffseg import DiffSeg
from diffseg.evaluation.scores import score_image
from infra.embedded.train import History, draw_curve, train
from infra.scenes.scene import benchmark

app = typer.Typer()
app.command()(train)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_curve_is_drawn_from_the_first_step_on():
    for rows in ([(1, 1.0, 3.5)], [(step, 1.0, 3.5 / step) for step in range(1, 200)]):
        picture = draw_curve(rows)
        assert picture.size == (900, 360)
    assert len(set(picture.get_flattened_data())) > 3


def test_history_goes_on_where_the_state_was_kept(tmp_path):
    history = History(tmp_path / "curve.csv", 0)
    for step in range(1, 6):
        history.add(step, 1.0, 2.0)
    history.write()
    assert len(History(tmp_path / "curve.csv", 3).rows) == 3
    assert History(tmp_path / "curve.csv", 0).rows == []


def test_resuming_nothing_is_refused(tmp_path):
    result = run("--steps", "2", "--resume", "--output", str(tmp_path))
    assert result.exit_code == 2
    assert "there is no" in result.output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_few_minutes_from_nothing_are_enough_to_find_segments(tmp_path):
    result = run("--steps", "140", "--size", "256", "--seed", "0", "--output", str(tmp_path), "--every", "70")
    assert result.exit_code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 192, 6 * 192)
    scenes = list(benchmark(40))
    found = DiffSeg.from_pretrained(str(tmp_path / "model"), device="cpu").segment([scene.image for scene in scenes])
    scores = [
        score_image(result.label_map.astype(np.int64), [scene.truth.astype(np.int64)])
        for result, scene in zip(found, scenes, strict=True)
    ]
    assert np.mean([score.ari for score in scores]) >= 0.25
    assert (tmp_path / "curve.csv").read_text().count("\n") == 141
