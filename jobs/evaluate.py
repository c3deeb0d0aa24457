"""`diffseg evaluate`: a run, or a baseline, against the truth, by the field's protocols.

With --reproduce it makes the run first, as a published row was made, and compares the figures with that row.
"""

from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from math import isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.label import report
from jobs.preview import appearing
from jobs.shared import console, options

if TYPE_CHECKING:
    from diffseg.evaluation.bootstrap import Interval
    from diffseg.evaluation.scores import Summary
    from pipeline.config import RunConfig
    from pipeline.evaluation.evaluate import Evaluation, MethodResult
    from pipeline.evaluation.protocols import Protocol
    from pipeline.evaluation.reproduce import Comparison, PublishedRow
    from pipeline.records import Shard

SHOWN = {"covering": "covering", "ari": "ARI", "boundary_f": "boundary F", "miou": "mIoU", "accuracy": "accuracy"}
MATCHED = {  # by what tells the classes of clusters
    "once": "matched once for the whole data set",
    "majority": "each cluster as the class of most of its pixels",
    "names": "by the names of categories",
}


@options.with_options
def evaluate(
    given: options.TruthOptions,
    read: options.ReadOptions,
    compute: options.ComputeOptions,
    url: Annotated[str | None, typer.Argument(help="The run. Without one only baselines are measured.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="kmeans, felzenszwalb, one-segment or humans; repeatable.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another run, compared image by image.")] = None,
    matching: Annotated[
        str, typer.Option(help="image (DiffSeg), or dataset as well: once for all (PiCIE, STEGO).")
    ] = "image",
    objects: Annotated[
        str | None, typer.Option("--truth-instances", help="Extension of the label map of instances; 0 is none.")
    ] = None,
    instances: options.ReadInstances = None,
    classes: Annotated[int | None, typer.Option(help="With regions: values are classes 0..n-1.")] = None,
    names: options.Names = None,
    table: Annotated[str | None, typer.Option(help="Write a Parquet file, one row an image.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Write an HTML page of the worst images.")] = None,
    worst: Annotated[int, typer.Option(help="Images in the gallery.", min=1)] = 24,
    reproduce: Annotated[
        str | None,
        typer.Option(help="Label and compare as published: coco-stuff-27, cityscapes-27."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of --reproduce; the paper's is sd1.4.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Of --reproduce: the folder where the data set was unpacked.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of --reproduce: only so many photos.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Of --reproduce: the run. Default: reproduce-coco-stuff-27, ...")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Of --reproduce: as `label` takes it.")] = None,
    json: options.Json = False,
) -> int:
    """mIoU, accuracy, ARI, covering and boundary F of a run against the truth, with 95 % intervals.

    With --reproduce, exit 1 where a published figure lies outside the interval.
    """
    from pipeline.config import read_config
    from pipeline.datasets.samples import SEGMENTS
    from pipeline.errors import ConfigError
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.predictions import Predictions
    from pipeline.evaluation.protocols import protocol_named, with_names
    from pipeline.evaluation.reproduce import open_photos, published_row
    from pipeline.evaluation.score import AGAINST, HUMANS, RUN, Scorer, check_methods
    from pipeline.evaluation.truth import open_truth, read_list
    from pipeline.evaluation.worst_page import worst_page
    from pipeline.run.ledger import Ledger
    from pipeline.table import encode_rows

    truth, protocol = given.truth, given.protocol
    row = None if reproduce is None else published_row(reproduce)
    if row is None:
        own = {"--model": model, "--data": data, "--limit": limit, "--output": output, "--workers": workers}
        if said := [name for name, value in own.items() if value is not None]:
            raise ConfigError(f"{said[0]} belongs to --reproduce")
        if truth is None:
            raise ConfigError("--truth is missing: name shards or a folder with label maps, or --reproduce a row")
    elif url or truth or given.listed or given.truth_key or protocol != "regions":
        raise ConfigError("--reproduce brings its run, --truth, --protocol, --list and --truth-key: leave these out")
    elif model is None or data is None:
        raise ConfigError("--reproduce needs --model (the paper's is sd1.4) and --data, where the data set is unpacked")
    else:
        url, truth, protocol = output or f"reproduce-{reproduce}", data, str(reproduce)
    if (read != options.ReadOptions() or instances) and (url is None or row is not None):
        raise ConfigError("--cut, --segments, --instances and tables are of a run: name that run")
    if objects and not (read.categories or instances):
        raise ConfigError("--truth-instances are compared with --categories or --instances: give one of them too")
    matching = "dataset" if read.categories else matching
    lines = read_list(names, "names") if names else []
    plain = replace(protocol_named(protocol, len(lines) or classes, tuple(given.ignore or ())), objects=objects)
    rules, _ = with_names(plain, lines)
    urls = {name: run for name, run in ((RUN, url), (AGAINST, against)) if run is not None}
    methods = check_methods([*urls, *(baseline or [])], rules)
    if matching not in ("image", "dataset") or (matching == "dataset" and rules.num_classes is None):
        raise ConfigError(f"--matching takes image, or dataset where the truth has classes, got {matching!r}")
    if gallery and methods[0] == HUMANS:
        raise ConfigError("--gallery shows a run or a baseline, and only humans are measured")
    _refuse_unwritable(table)
    _refuse_unwritable(gallery)
    opened = read.open(url) if url and row is None else None
    named, recall = opened.categories_table if opened else (), instances is not None
    scorer = Scorer(rules, methods, matching == "dataset", named, recall)
    if row is None:
        samples = open_truth(truth, rules, member=given.truth_key, listed=given.listed)
    else:
        shard, samples = open_photos(truth, rules, row, limit)
        _, settings = read_config(
            None, {}, {"workers": workers, "ray_address": compute.ray_address, "stall": compute.stall}
        )
        if code := _label(shard, str(url), str(model), row, settings, json):
            return code
    runs = {  # --against is read as it was labelled
        name: Predictions(
            opened if opened and name == RUN else Ledger.open(run),
            rules,
            keep=["segments"] * (recall and name == RUN),
            instances=instances or SEGMENTS if name == RUN else SEGMENTS,
        )
        for name, run in urls.items()
    }
    tell, counted, kept = console.seldom(), count(1), worst if gallery else 0
    with compute.map() as parallel_map:
        done = evaluate(
            samples,
            runs,
            scorer,
            parallel_map=parallel_map,
            worst=kept,
            on_image=lambda: tell(f"{next(counted):,} images measured"),
        )
    if not any(result.scores for result in done.results.values()):
        raise ConfigError(f"{truth}: no image could be scored: {_left_out(done.results[methods[0]]) or 'it is empty'}")
    if table:
        _write(table, encode_rows(done.rows))
    if gallery:
        _write(gallery, worst_page(done, scorer, url or truth))
    compared = None if row is None else _compare(done.results[RUN], row, truth)
    if json:
        agreement = {name: asdict(one) | {"agrees": one.agrees} for name, one in (compared or {}).items()}
        console.say_json(_document(done, rules) | ({} if compared is None else {"published": agreement}))
    else:
        _report(done, rules)
    if compared and not json:
        console.say("published (DiffSeg, arXiv 2308.12469), inside the run's 95 % interval but for its rounding?")
        shown = [
            [SHOWN[name], f"{one.published:.3f}", _cell(one.own), "inside" if one.agrees else "outside"]
            for name, one in compared.items()
        ]
        _table(["", "published", "here", ""], shown)
    return 0 if compared is None or all(one.agrees for one in compared.values()) else 1


def _label(shard: "Shard", output: str, model: str, row: "PublishedRow", run: "RunConfig", json: bool) -> int:
    """Label photos with the settings of a published row, or finish that; 0 where every photo has labels."""
    from pipeline.labelling import Hooks, finish, open_run

    ledger = open_run([shard], output, model, row.config, run, extend=True)
    segment = ledger.run.segment
    console.note(f"{ledger}: model {ledger.run.model}, mode {segment.mode}, {options.describe(segment)}")
    with console.progress() as tick:
        summary = finish(ledger, model, run, hooks=Hooks(tick=tick, note=console.note))
    whole = not summary.faults and not summary.totals.failed_rows
    return 0 if whole and json else report(summary, replace(run, max_failed=0.0), json)


def _compare(result: "MethodResult", row: "PublishedRow", data: str) -> "dict[str, Comparison]":
    """The run's figures beside the published ones. Raises ConfigError where they are not of all photos."""
    from pipeline.errors import ConfigError
    from pipeline.evaluation.score import IGNORED

    if result.left_out.keys() - {IGNORED} or result.summary is None:
        raise ConfigError(f"{data}: no figure of the protocol, for photos could not be scored: {_left_out(result)}")
    return row.compare(result.summary)


def _write(output: str, data: bytes) -> None:
    """Write a file or object, whole or not at all. Raises ConfigError where it cannot be written."""
    with appearing(output) as out:
        out.write(data)
    console.note(f"wrote {output}")


class _OnlyTried(Exception):
    """Ends the writing of an output before it appears."""


def _refuse_unwritable(output: str | None) -> None:
    """Raises ConfigError where an output cannot be written: now rather than after an hour of measuring."""
    if output is not None:
        with suppress(_OnlyTried), appearing(output):
            raise _OnlyTried


def _report(done: "Evaluation", rules: "Protocol") -> None:
    """Print the figures as Markdown; where there are classes, first those pooled over all pixels, as published."""
    summaries = {name: result.summary for name, result in done.results.items()}
    scored = {name: summary for name, summary in summaries.items() if summary is not None}
    if rules.classes is not None:
        _report_classes(done, scored, list(rules.classes))
    console.say(f"{rules.name}, means over images with 95 % intervals:")
    _table(
        ["", "images", *SHOWN.values(), "segments"],
        [
            [name, f"{s.images:,}", *(_cell(s.per_image[m]) for m in SHOWN), f"{s.per_image['segments'].value:.1f}"]
            for name, s in scored.items()
        ],
    )
    first = next(iter(done.results))
    for other, interval in done.lead(rules.leading).items():
        console.say(f"{first} above {other}, {SHOWN[rules.leading]} image by image: {_cell(interval)}")
    for name, result in done.results.items():
        if result.recalled:
            objects = sum(each.objects for each in result.recalled)
            console.say(f"{name}: {_figures(result.average_recall)} of {objects:,} objects")
        if result.left_out:
            console.say(f"{name}: {result.left_out.total():,} of {len(result.rows):,} left out: {_left_out(result)}")
    for name, keys in done.no_truth.items():
        if keys:
            console.say(f"{name}: {keys:,} of its keys have no truth")


def _report_classes(done: "Evaluation", scored: "dict[str, Summary]", classes: list[str]) -> None:
    console.say("pixels of all images, segments matched to classes image by image, with 95 % intervals:")
    rows = [[name, f"{s.images:,}", _cell(s.accuracy), _cell(s.miou)] for name, s in scored.items()]
    _table(["", "images", "accuracy", "mIoU"], rows)
    for name, result in done.results.items():
        for how, figures in result.by_category.items():
            console.say(f"{name}, {MATCHED[how]}: {_figures(figures)}")
    console.say("IoU of each class:")
    columns = [summary.class_iou or () for summary in scored.values()]
    table = [
        [name, *("never there" if isnan(column[i]) else f"{column[i]:.3f}" for column in columns)]
        for i, name in enumerate(classes)
    ]
    _table(["", *scored], table)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for cells in (columns, ["-" * width for width in widths], *rows):
        console.say(f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |")
    console.say("")


def _cell(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    value, low, high = (f"{round(x, 3) + 0.0:.3f}" for x in (interval.value, interval.low, interval.high))  # no -0.000
    return f"{value} ({low} to {high})"


def _figures(values: "dict[str, float]") -> str:
    """Figures, those that have an interval with it."""
    names = [name for name in values if not name.endswith(("_low", "_high"))]
    ends = [f" ({values[f'{n}_low']:.3f} to {values[f'{n}_high']:.3f})" if f"{n}_low" in values else "" for n in names]
    shown = (SHOWN.get(name, name.upper().replace("AR_", "AR")) for name in names)
    return ", ".join(f"{word} {values[n]:.3f}{end}" for word, n, end in zip(shown, names, ends, strict=True))


def _left_out(result: "MethodResult") -> str:
    """The reasons why images were left out, the most frequent first, each with an example."""
    reasons = result.left_out.most_common()
    return "; ".join(f"{count:,} {reason} (such as {result.examples[reason]})" for reason, count in reasons)


def _document(done: "Evaluation", rules: "Protocol") -> dict[str, Any]:
    """All figures for programs; undefined ones are null."""
    methods = {}
    for name, result in done.results.items():
        summary, by_category = result.summary, result.by_category
        methods[name] = {
            "summary": None if summary is None else asdict(summary),
            "dataset_matching": by_category.get("once"),
            **({"by_category": by_category} if by_category else {}),
            **({"average_recall": result.average_recall} if result.recalled else {}),
            "left_out": dict(result.left_out),
            "examples": result.examples,
        }
    lead = {other: asdict(interval) for other, interval in done.lead(rules.leading).items()}
    return {
        "protocol": rules.name,
        "classes": None if rules.classes is None else list(rules.classes),
        "methods": methods,
        "lead": {"measure": rules.leading, "over": lead},
        "keys_without_truth": done.no_truth,
    }
