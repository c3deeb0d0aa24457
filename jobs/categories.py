"""`diffseg categories`: segments of a whole run grouped without a label, or named from labelled images or words."""

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.shared import console, options


@options.with_options
def categories(
    url: options.Run,
    given: options.TruthOptions,
    read: options.CutOptions,
    compute: options.ComputeOptions,
    clusters: Annotated[
        int | None, typer.Option(min=2, help="Group segments by their vectors into so many categories.")
    ] = None,
    names: options.Names = None,
    naming: Annotated[
        str | None, typer.Option(help="What reads words: clip, detector, or cross-attention, those of label --words.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--with", help="A CLIP, SigLIP, OWL-ViT, OWLv2 or Grounding DINO: hub id, folder or URL."),
    ] = None,
    margin: Annotated[float, typer.Option(help="Of words: a smaller lead is unknown.", min=0)] = 0,
    least: Annotated[float, typer.Option(help="Of words: a lower best score is unknown.", min=-1)] = -1,
    name: Annotated[str, typer.Option(help="Of the table, for --categories of other commands.")] = "categories",
    seed: Annotated[
        int, typer.Option(help="Decides which segments --clusters are found from.", min=0, max=2**32 - 1)
    ] = 0,
    unknown: Annotated[
        float, typer.Option(help="Share of a cluster that is too far from its centre.", min=0, max=0.9)
    ] = 0.01,
    extend: options.Extend = False,
    json: options.Json = False,
) -> None:
    """Give every segment of a run a category that is consistent over all its images."""
    from diffseg.models.joint.files import CLIP, DETECTOR
    from pipeline.categories import categorise
    from pipeline.categories.labelled import classify
    from pipeline.categories.words import CROSS, Words
    from pipeline.derived.corrections import NAME
    from pipeline.errors import ConfigError
    from pipeline.evaluation.protocols import protocol_named, with_names
    from pipeline.evaluation.truth import corrected_truth, open_truth, read_list
    from pipeline.flags import number
    from pipeline.run.ledger import Ledger

    if (clusters is not None) + (given.truth is not None) + (naming is not None) + extend != 1:
        raise ConfigError("--clusters groups, --truth and --naming name, --extend takes in windows: name one of them")
    if naming not in (None, CLIP, DETECTOR, CROSS):
        raise ConfigError(f"--naming {naming}: possible are {CLIP}, {DETECTOR} and {CROSS}")
    if naming and {names is None, model is None} != {naming == CROSS}:
        raise ConfigError(
            "--naming reads the words of --names FILE by the model of --with MODEL: give both, but with "
            f"{CROSS}, whose words `label --words` took, neither"
        )
    if extend and read.at:
        raise ConfigError("--extend goes on at the cut of the table: leave out --cut and --segments")
    ledger, expected, left_out = Ledger.open(url, cut=read.at), None, tuple[str, ...]()
    command = f"diffseg categories {ledger} --name {name}"
    with compute.map() as parallel_map:
        if clusters is not None:
            made = categorise.cluster(ledger, clusters, name, command, seed, unknown, parallel_map)
        elif given.truth is not None:
            lines = read_list(names, "names") if names else []
            people, lines = corrected_truth(url, named=True) if given.truth == NAME else (None, lines)
            rules, known = with_names(
                protocol_named(given.protocol, len(lines) or None, tuple(given.ignore or ())), lines
            )
            samples = people or open_truth(given.truth, rules, member=given.truth_key, listed=given.listed)
            made, expected, left_out = classify(ledger, samples, rules, known, name, command, parallel_map)
        elif naming is not None:
            given_words = read_list(names, "words") if names else ledger.run.segment.words or ()
            kinds, reader = Words.read(ledger, naming, given_words, model, margin, least)
            made = categorise.keep(ledger, reader, kinds, name, command, {"segments": 0}, parallel_map)
        else:
            made = categorise.extend(ledger, name, parallel_map)
    at = made.cut
    flag = (
        "" if at is None else f" --cut {number(at.height)}" if at.height is not None else f" --segments {at.segments}"
    )
    if json:
        document = {"output": str(ledger), **asdict(made), "expected": expected and asdict(expected)}
        console.say_json(document | {"left_out": left_out})
        return
    console.left_out(left_out)
    if made.segments and not extend:
        console.say(f"fitted to {made.segments:,} segments{f' of {expected.images:,} images' if expected else ''}")
    if expected:
        figures = f"accuracy of pixels {expected.accuracy:.3f}, mIoU {expected.miou:.3f}"
        console.say(f"on images that a fit has not seen: {figures}; unknown below a margin of {expected.limit:g}")
    console.say(f"{made.table}: {len(made.categories):,} categories in {made.windows:,} windows")
    console.say(f"read it with --categories {made.table}{flag}")
