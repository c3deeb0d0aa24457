"""Rows found in damaged shards by us, by webdataset and by Ray Data: printed side by side with `pytest -s -m slow`."""

import io
import sys
from collections.abc import Callable

import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import CorruptShard
from pipeline.inputs.tar.reading import read_samples
from tests.support.damage import DAMAGED, SOUND, compressed

pytestmark = pytest.mark.slow
SHARDS = {"sound": SOUND, **{what: data for what, (data, _) in DAMAGED.items()}}
SHARDS |= compressed("gz")


def by_us(data: bytes, name: str) -> str:
    found = 0
    try:
        for _ in read_samples(io.BytesIO(data), name):
            found += 1
    except CorruptShard:
        return f"{found}, damage told"
    return str(found)


def by_webdataset(data: bytes, name: str) -> str:
    """Its own reader, with the handler its pipelines install unless told otherwise."""
    found = 0
    try:
        files = tar_file_expander([{"url": name, "stream": io.BytesIO(data)}], handler=webdataset.reraise_exception)
        for _ in group_by_keys(files, handler=webdataset.reraise_exception):
            found += 1
    except Exception as error:  # noqa: BLE001 - whatever it raises is what its users see
        return f"{found}, {type(error).__name__}"
    return str(found)


def by_ray_data(folder) -> Callable[[bytes, str], str] | None:
    try:
        import ray
        import ray.data
    except ImportError:
        return None
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def count(data: bytes, name: str) -> str:
        path = folder / ("x.tar.gz" if name.endswith("gz") else "x.tar")
        path.write_bytes(data)
        try:
            return str(ray.data.read_webdataset(str(path), decoder=False).count())
        except Exception as error:  # noqa: BLE001
            return type(error).__name__

    return count


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # of Ray and webdataset, which are only compared with
def test_no_damage_is_silent_here_while_other_readers_pass_some_over(tmp_path, capsys):
    others = {"webdataset": by_webdataset, "Ray Data": by_ray_data(tmp_path)}
    lines, silent_elsewhere = [], 0
    for what, data in SHARDS.items():
        name = "x.tar.gz" if what.startswith("gz") else "x.tar"
        ours = by_us(data, name)
        theirs = {reader: read(data, name) if read else "not installed" for reader, read in others.items()}
        lines.append(f"{what:45} {ours:18} " + " ".join(f"{said:18}" for said in theirs.values()))
        assert ours.endswith("damage told") or what == "sound", what
        silent_elsewhere += theirs["webdataset"].isdigit() and what != "sound"
    if others["Ray Data"]:
        sys.modules["ray"].shutdown()
    with capsys.disabled():
        print("\n" + "\n".join([f"{'shard of 5 samples':45} {'diffseg':18} webdataset         Ray Data", *lines]))  # noqa: T201
    assert silent_elsewhere > 0
