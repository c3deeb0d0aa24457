"""`diffseg pilot`: a drawn sample at several thresholds, its gallery, and what its figures say of the whole run."""

import json
import uuid

import pytest

from diffseg.cut import Cut
from jobs.shared import cli
from pipeline.errors import ConfigError
from pipeline.gallery.preview import heights_around
from pipeline.inputs.shards import pin
from pipeline.pilot.page import write_pilot
from pipeline.pilot.pilot import pilot
from pipeline.pilot.plan import read_pilot
from pipeline.records import OK
from pipeline.storage.object_store import Store
from pipeline.table.cuts import at_cut
from pipeline.table.label_map import decode_label_map
from pipeline.table.window_metadata import fields_of
from tests.commands.test_cli import PHOTOS, small
from tests.conftest import jpeg, samples, write_shard
from tests.support.processes import servers
from tests.test_segmenter import Colours

LOW, HIGH = (0.01, 0.01), (9.0, 9.0)


@pytest.fixture
def shards(tmp_path):
    """Five shards of 24 photos of two colours."""
    for number in range(5):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(24, first=100 * number))
    return pin([str(tmp_path / "in" / "s-*.tar")])


def run(shards, count=18, seed=0, **options):
    return pilot(shards, Colours(), [LOW, HIGH], samples=count, seed=seed, decode_threads=1, **options)


def drawn(made):
    return [(sample.shard, sample.index) for sample in made.samples]


def test_as_many_images_as_asked_are_drawn_by_seed_from_several_shards(shards):
    made = run(shards)
    assert len(set(drawn(made))) == 18
    assert len({shard for shard, _ in drawn(made)}) > 1
    assert drawn(run(shards)) == drawn(made)
    assert drawn(run(shards, seed=1)) != drawn(made)


def test_what_is_drawn_is_what_lies_at_its_place(shards):
    for sample in run(shards).samples:
        number = int(sample.shard.removesuffix(".tar").rpartition("-")[2])
        assert sample.rows[0].key == f"{100 * number + sample.index:04d}"


def test_each_image_is_labelled_at_each_threshold(shards):
    made = run(shards)
    low, high = made.at
    assert all(len(sample.rows) == 2 for sample in made.samples)
    assert low.segments > high.segments == 1
    assert (low.single, high.single) == (0.0, 1.0)
    assert 0 < low.largest < high.largest == 1.0
    assert {row.quality for sample in made.samples for row in sample.rows[1:]} == {None}
    assert min(low.output_bytes, high.output_bytes) > 100
    assert made.statuses == {OK: 18}
    assert (made.counts.total, made.counts.exact) == (120, True)


def test_every_stage_has_a_speed_and_a_worker_is_slower_than_any(shards):
    rates = run(shards).rates
    assert 0 < rates.worker < min(rates.decode, rates.model, rates.merge, rates.encode)
    assert rates.read > 0


def test_a_sample_of_more_than_there_is_takes_everything_once(shards):
    made = run(shards[:1], count=1000)
    assert [index for _, index in drawn(made)] == list(range(24))


def test_images_that_cannot_be_labelled_are_counted_and_shown_with_their_reason(tmp_path):
    content = [("a", {"jpg": jpeg(1)}), ("b", {"jpg": b"no image"}), ("c", {"txt": b"x"}), ("d", {"jpg": jpeg(2)})]
    made = run(pin([str(write_shard(tmp_path / "x.tar", content))]))
    assert made.statuses == {OK: 2, "undecodable": 1, "no_image": 1}
    assert [len(sample.rows) for sample in made.samples] == [2, 1, 1, 2]
    assert made.at[0].segments > 1


def test_a_damaged_shard_is_told_and_the_others_are_piloted(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"s-{number}.tar", samples(6))
    path = tmp_path / "s-0.tar"
    path.write_bytes(path.read_bytes()[:-11000])
    made = run(pin([str(tmp_path / "s-*.tar")]), count=1000)
    assert len(made.unread) == 1
    assert "s-0.tar: damaged at byte" in made.unread[0]
    assert 6 < len(made.samples) < 12


def test_where_nothing_can_be_labelled_the_reason_is_given(tmp_path):
    broken = write_shard(tmp_path / "x.tar", [("a", {"jpg": b"no image"})])
    with pytest.raises(ConfigError, match="none of 1 images could be labelled, for example: no image of a kind"):
        run(pin([str(broken)]))


def test_progress_is_told_up_to_the_last_batch(shards):
    heard: list[int] = []
    run(shards, tick=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 16  # batches of four


def test_the_gallery_shows_each_image_once_with_a_caption_for_each_threshold(shards, tmp_path):
    made = run(shards)
    with (tmp_path / "p.html").open("wb") as out:
        assert write_pilot(made, out, "colours") == 18
    text = (tmp_path / "p.html").read_text()
    index = json.loads(text.partition('<script id="index" type="application/json">')[2].partition("</script>")[0])
    assert [[one["caption"] for one in item["maps"]] for item in index["items"]] == 18 * [
        ["threshold 0.01", "threshold 9"]
    ]
    assert [one["title"] for one in index["histograms"]] == [
        "Segments an image at threshold 0.01",
        "Segments an image at threshold 9",
    ]


def test_with_trees_one_pass_gives_the_labels_of_every_cut(tmp_path, shards):
    model = Colours(tree=True, cut=0.4)
    made = pilot(shards, model, [], samples=6, seed=0, decode_threads=1)
    assert sum(model.passes) == 6
    assert [at.cut for at in made.at] == list(heights_around(0.4))
    assert [at.thresholds for at in made.at] == [()] * 7
    segments = [float(at.segments or 0) for at in made.at]
    assert segments == sorted(segments, reverse=True)
    assert segments[0] > segments[-1]
    for sample in made.samples:
        whole = fields_of(sample.rows[0])
        for row, at in zip(sample.rows, made.at, strict=True):
            wanted = at_cut(whole, Cut(height=at.cut))
            assert row.label_map is not None
            assert (decode_label_map(row.label_map) == wanted["label_map"]).all()
            assert row.num_segments == wanted["num_segments"]
    with (tmp_path / "pilot.html").open("wb") as out:
        assert write_pilot(made, out, "colours") == 6
    page = (tmp_path / "pilot.html").read_text()
    assert '"level":3,' in page
    assert "<h1>Pilot of colours at 7 cuts</h1>" in page
    assert page.count('"caption":"cut 0.4"') == 6
    assert "Segments an image at cut 1.2" in page


def test_the_command_pilots_trees_where_no_threshold_is_asked_for(photos_in_tars, tmp_path, capsys):
    figures = tmp_path / "pilot.json"
    options = ["--model", "tiny", "--samples", "2", "--image-size", "64", "--output", str(tmp_path / "pilot.html")]
    assert cli.run(["pilot", photos_in_tars, *options, "--cut", "0.3"]) == 0
    said, heard = capsys.readouterr()
    assert "trees, cut at 0.3 nats and at heights around it" in heard
    assert "the slider shows cuts" in said
    assert "label --output URL --model tiny --image-size 64 --cut 0.3 " in said
    assert [at["cut"] for at in json.loads(figures.read_text())["cuts"]] == list(heights_around(0.3))
    speed = read_pilot(str(figures))
    assert speed.output_bytes is not None
    assert speed.output_bytes > 100


@pytest.fixture
def photos_in_tars(tmp_path):
    for number in range(2):
        content = [(path.stem, {"jpg": small(path)}) for path in PHOTOS[3 * number : 3 * number + 3]]
        write_shard(tmp_path / "in" / f"p-{number}.tar", content)
    return str(tmp_path / "in" / "p-*.tar")


def test_a_pilot_says_what_to_choose_from_what_it_costs_and_what_comes_next(photos_in_tars, tmp_path, capsys):
    output = tmp_path / "out" / "pilot.html"
    arguments = ["pilot", photos_in_tars, "--model", "tiny", "--output", str(output)]
    arguments += ["--threshold", "0.1", "--threshold", "0.2,0.3,0.4"]
    assert cli.run([*arguments, "--samples", "4", "--price", "2.5", "--deadline", "10", "--image-size", "64"]) == 0
    said, heard = capsys.readouterr()
    assert "thresholds 0.1, 0.1, 0.1 (one an iteration)\nthresholds 0.2, 0.3, 0.4 (one an iteration)\n" in heard
    for part in ("4 images, tiny on", "0.1", "0.2,0.3,0.4", "one alone", "all of it", "2.50 an hour", "in 10 hours"):
        assert part in said
    assert "next: diffseg label --output URL --model tiny --threshold X --image-size 64 " in said
    assert output.stat().st_size > 50_000
    assert "worker-hours" in output.read_text()

    speed = read_pilot(str(output.with_suffix(".json")))
    assert cli.run(["plan", photos_in_tars, "--pilot", str(output.with_suffix(".json")), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["images"], planned["exact"]) == (6, True)
    assert speed.output_bytes is not None
    assert planned["output_bytes"] == pytest.approx(6 * speed.output_bytes)


def test_a_schedule_that_is_said_twice_is_piloted_alone_and_is_what_comes_next(photos_in_tars, tmp_path, capsys):
    options = ["--model", "tiny", "--samples", "2", "--image-size", "64", "--output", str(tmp_path / "pilot.html")]
    assert cli.run(["pilot", photos_in_tars, *options, *2 * ["--threshold", "0.1234567,0.3,0.2"]]) == 0
    said, heard = capsys.readouterr()
    assert heard.count("(one an iteration)") == 1
    assert "label --output URL --model tiny --threshold 0.1234567,0.3,0.2 --image-size 64 " in said


def test_without_trees_a_pilot_compares_the_models_own_threshold_and_two_around_it(photos_in_tars, tmp_path, capsys):
    output = str(tmp_path / "pilot.html")
    options = ["--model", "tiny", "--samples", "2", "--image-size", "64", "--output", output, "--json", "--no-tree"]
    assert cli.run(["pilot", photos_in_tars, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    low, own, high = (at["thresholds"][0] for at in said["thresholds"])
    assert (low, high) == pytest.approx((0.8 * own, 1.2 * own))
    assert said["images"] == 2
    assert said["gallery"] == output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "tiny", "--threshold", "much"], "'much'"),
        (["--model", "tiny", "--threshold", "0.5,-1"], "'0.5,-1'"),
        (["--model", "tiny", "--threshold", "0.5", "--threshold", "nan"], "'nan'"),
        (["--model", "tiny", "--threshold", "0.7,0.9,1.1"], "say --threshold 0.7 --threshold 0.9 --threshold 1.1;"),
        (
            ["--model", "tiny", "--threshold", "0.7,0.9,1.1"],
            "to see that schedule alone say --threshold 0.7,0.9,1.1 twice",
        ),
        (["--model", "tiny", "--output", "pilot.txt"], "ends in .html, got pilot.txt"),
        (["--model", "sd9", "--output", "/proc/pilot/p.html"], "/proc/pilot"),
        (["--model", "tiny", "--samples", "0"], "--samples"),
        (["--model", "tiny", "--price", "-2"], "-2"),
        (["--model", "tiny", "--deadline", "0"], "--deadline"),
        (["--model", "sd9"], "'sd9'"),
        ([], "Missing option '--model'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_2(options, expected, tmp_path, capsys):
    shard = write_shard(tmp_path / "ok.tar", samples(2))
    assert cli.run(["pilot", str(shard), *options]) == 2
    heard = capsys.readouterr().err.strip()
    assert expected in heard
    assert heard.startswith("diffseg: ")
    assert "\n" not in heard


def test_shards_that_are_not_there_are_told_before_the_model_is_loaded(tmp_path, capsys):
    assert cli.run(["pilot", str(tmp_path / "none.tar"), "--model", "sd9"]) == 2
    assert "none.tar: no such shard" in capsys.readouterr().err


def test_a_pilot_of_shards_on_s3_leaves_its_gallery_and_figures_there(s3, tmp_path, capsys):
    place = f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}"
    content = [(path.stem, {"jpg": small(path)}) for path in PHOTOS[:3]]
    Store(place).put_new("in/p-0.tar", write_shard(tmp_path / "p-0.tar", content).read_bytes())
    options = ["--model", "tiny", "--image-size", "64", "--threshold", "0.2", "--output", f"{place}/pilot.html"]

    assert cli.run(["pilot", f"{place}/in/p-*.tar", *options]) == 0

    assert "--threshold 0.2 " in capsys.readouterr().out
    assert b"threshold 0.2" in Store(place).get("pilot.html")
    assert read_pilot(f"{place}/pilot.json").images_per_s > 0
