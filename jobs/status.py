"""`diffseg status`: how far a run is, from storage alone."""

from collections import Counter
from dataclasses import asdict
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.shared import console, options

if TYPE_CHECKING:
    from pipeline.gallery.statistics import Detail
    from pipeline.run.commit import Failure

SHOWN = 5  # failures
BAR = 40  # letters of the longest bar


@options.with_options
def status(
    url: options.Run,
    read: options.ReadOptions,
    detail: Annotated[
        bool,
        typer.Option("--detail", help="Read rows too: status, segments, areas, quality, storage, failures."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Done, left, failed, speed and ETA of a run, from anywhere that sees its storage."""
    from pipeline.derived.note import overview
    from pipeline.errors import ConfigError
    from pipeline.gallery.statistics import detail as detail_of
    from pipeline.run.status import failures, status

    if read != options.ReadOptions() and not detail:
        raise ConfigError("--cut, --segments, --calibration, --categories and --corrections belong to --detail")
    ledger = read.open(url)
    seen = status(ledger)
    more = detail_of(ledger) if detail else None
    failed_work = failures(ledger) if detail else Counter()
    derived = overview(ledger) if detail else {}
    if json:
        document = {"output": str(ledger), "fingerprint": ledger.run.fingerprint, **asdict(seen)}
        console.say_json(
            {**document, "detail": _as_json(more, failed_work) | {"derived": derived}} if more else document
        )
        return
    failed = sum(seen.failed.values())
    state = "complete" if seen.complete else f"{seen.drivers} drivers at work" if seen.drivers else "not at work"
    rows = [
        ["state", state],
        ["model", f"{ledger.run.model}, mode {ledger.run.segment.mode}, fingerprint {ledger.run.fingerprint}"],
        ["shards", f"{seen.shards_ended:,} of {seen.shards:,} done, {console.size(seen.bytes_left)} of input left"],
        ["windows", f"{seen.windows:,} committed, {console.size(seen.output_bytes)}"],
        ["rows", f"{'' if seen.rows_exact else 'at least '}{seen.rows:,}, {failed:,} without labels"],
    ]
    if seen.drivers:
        rows.append(["speed", f"{seen.images_per_s:.1f} images/s, {console.duration(seen.eta_s)} left"])
    rows += [[f"  {reason}", f"{count:,}"] for reason, count in sorted(seen.failed.items())]
    rows += [["  for example", example] for example in seen.examples]
    rows += [["  not read", f"{name}: no note of a driver"] for name in seen.unreadable]
    console.table(str(ledger), ["", ""], rows)
    if more:
        _show(more)
        if derived:
            console.table("derived tables", ["", ""], [[table, line] for table, line in derived.items()])
        _show_failures(failed_work)


def _as_json(detail: "Detail", failures: "Counter[Failure]") -> dict[str, Any]:
    counts = detail.counts
    return {
        "share_read": detail.share,
        "samples": counts.samples,
        "by_status": dict(counts.by_status()),
        "segments_mean": counts.mean_segments,
        "quality_mean": counts.mean_quality,
        "categories": dict(counts.categories),
        "histograms": [
            {"title": each.title, "edges": each.edges, "counts": each.counts} for each in counts.histograms()
        ],
        "failures": [{"count": count, **asdict(failure)} for failure, count in failures.most_common()],
        "storage": {folder: asdict(holding) for folder, holding in detail.storage.items()},
    }


def _show(detail: "Detail") -> None:
    counts = detail.counts
    read = f", read from {detail.share:.1%} of the run, drawn at random" if detail.share < 1 else ""
    samples = max(1, counts.samples)
    rows = [[status, f"{number:,}", f"{number / samples:.2%}"] for status, number in counts.by_status()]
    console.table(f"{counts.samples:,} samples by status{read}", ["", "", ""], rows)
    for histogram in counts.histograms():
        most = max(1, *histogram.counts)
        bins = zip(histogram.ticks, histogram.ticks[1:], histogram.counts, strict=False)
        rows = [[f"{low} to {high}", f"{count:,}", "█" * round(BAR * count / most)] for low, high, count in bins]
        console.table(f"{histogram.title}: {histogram.note}", ["", "", ""], rows)
    if counts.categories:
        named = [[name, f"{number:,}"] for name, number in counts.categories.most_common()]
        console.table("segments by category", ["", ""], named)
    stored = [[folder, f"{held.objects:,}", console.size(held.size)] for folder, held in detail.storage.items()]
    console.table("on storage", ["folder", "objects", "bytes"], stored)


def _show_failures(failures: "Counter[Failure]") -> None:
    """The most frequent ones with their tracebacks."""
    for failure, count in failures.most_common(SHOWN):
        console.say(f"{count:,} x {failure.kind or 'sample'}: {failure.error}")
        if failure.traceback:
            console.say_lines(indent(failure.traceback, "    "))
    if len(failures) > SHOWN:
        console.say(f"{len(failures) - SHOWN:,} other failures are in failures/")
