"""`diffseg plan`: what a run will take, from a listing and a few headers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.shared import cli
from pipeline.inputs import count
from pipeline.storage import filesystem
from tests.categories.materials import material_run
from tests.conftest import samples, write_shard
from tests.datasets.test_joined import categorise
from tests.support.labelled import make_run


@pytest.fixture
def tars(tmp_path):
    for number in range(20):
        write_shard(tmp_path / f"s-{number:05d}.tar", samples(40))
    return str(tmp_path / "s-{00000..00019}.tar")


def test_a_plan_says_images_hours_cost_output_and_workers(tars, capsys):
    speed = ["--images-per-second", "0.01", "--image-bytes", "1e6"]
    assert cli.run(["plan", tars, *speed, "--price", "2.5", "--deadline", "6"]) == 0
    said = capsys.readouterr().out
    for part in ("20 shards", "about 8", "0.01 images/s", "worker-hours", "2.50 an hour", "MB", "in 6 hours"):
        assert part in said
    assert f"next: diffseg label --output URL --model NAME '{tars}'" in said


def test_a_plan_of_categories_takes_them_from_a_table_of_a_run(tars, tmp_path, capsys):
    run = str(material_run(tmp_path).store)
    assert cli.run(["categories", run, "--clusters", "4", "--name", "kinds"]) == 0
    capsys.readouterr()
    assert cli.run(["plan", tars, "--run", run, "--categories", "kinds", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = next(Path(run, "derived", "kinds", "1").glob("*.parquet")).stat().st_size
    assert 0.2 < found["categories_bytes"] / found["images"] / (stored / 16) < 5
    assert 1e-5 < found["categories_core_hours"] * 3600 / found["images"] < 0.1
    assert cli.run(["plan", tars, "--run", run, "--categories", "kinds"]) == 0
    assert re.search(r"categories .* of a core, ", capsys.readouterr().out)
    assert cli.run(["plan", tars, "--run", run]) == 2
    assert "--run and --categories go together" in capsys.readouterr().err
    categorise(ledger := make_run(tmp_path / "other"))
    assert cli.run(["plan", tars, "--run", str(ledger.store), "--categories", "kinds"]) == 2
    assert "a derived table that this version's categories did not make" in capsys.readouterr().err


def test_without_a_speed_the_next_step_is_a_pilot(tars, capsys):
    assert cli.run(["plan", tars]) == 0
    assert "next: diffseg pilot --model NAME" in capsys.readouterr().out


def test_a_plan_from_a_pilot_as_json(tars, tmp_path, capsys):
    pilot = tmp_path / "pilot.json"
    pilot.write_text(json.dumps({"images_per_s": 2.0, "output_bytes": 1000.0}))
    assert cli.run(["plan", tars, "--pilot", str(pilot), "--json", "--price", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["shards"], said["exact"]) == (20, False)
    assert said["images"] == pytest.approx(800, rel=0.1)
    assert said["output_bytes"] == 1000 * said["images"]
    assert said["cost"] == pytest.approx(3 * said["worker_hours"])


def test_however_many_shards_only_a_few_are_opened(tars, monkeypatch):
    opened, real = [], filesystem.open_ranged

    def counted(*given):
        opened.append(given)
        return real(*given)

    monkeypatch.setattr(filesystem, "open_ranged", counted)
    assert cli.run(["plan", tars]) == 0
    assert len(opened) == count.TARS < 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pilot", "nope.json"], "nope.json: no such file; `diffseg pilot` writes it"),
        (["--pilot", "p.json", "--images-per-second", "3"], "--pilot brings the speed"),
        (["--image-bytes", "3"], "--image-bytes goes with --images-per-second"),
        (["--images-per-second", "0"], "above 0, got 0"),
        (["--images-per-second", "1", "--price", "-1"], "--price"),
        (["--images-per-second", "1", "--deadline", "0"], "--deadline"),
        (["--images-per-second", "much"], "'--images-per-second': Input should be a valid number"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_2(options, said, tars, capsys):
    assert cli.run(["plan", tars, *options]) == 2
    heard = capsys.readouterr().err.strip()
    assert said in heard
    assert heard.startswith("diffseg: ")
    assert "\n" not in heard


def test_shards_that_are_not_there_are_one_clear_line(tmp_path, capsys):
    assert cli.run(["plan", str(tmp_path / "none-{0..3}.tar")]) == 2
    assert "no such shard" in capsys.readouterr().err


def test_planning_imports_no_torch(tars):
    script = (
        "import sys\nfrom jobs.shared import cli\n"
        f"assert cli.run(['plan', {tars!r}, '--images-per-second', '1']) == 0\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'webdataset'} & set(sys.modules)))"
    )
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]"
