"""The script behind the bytes of trees in infra/benchmarks/masks.md."""

import runpy
from pathlib import Path

from tests.support.labelled import CUT, make_run

SCRIPT = Path(__file__).parents[2] / "infra" / "benchmarks" / "masks" / "rows.py"


def test_rows_are_measured_with_and_without_their_trees(tmp_path, capsys):
    run = str(make_run(tmp_path, trees=CUT, failed={(0, 1): "undecodable"}))
    runpy.run_path(str(SCRIPT))["main"](run)
    first, *columns, _, _, whole, _, _, _, fewest = capsys.readouterr().out.splitlines()
    assert first == "8 rows"
    assert columns[2:] == ["tree: 166 bytes", "vectors: 594 bytes"]  # of nine leaves
    leaves, both, alone = map(float, whole.split("|")[2:5])
    assert leaves == 9
    assert 1 < alone < both < 10
    assert whole.split("|")[2:] == fewest.split("|")[2:]  # no tree has more than sixteen leaves
