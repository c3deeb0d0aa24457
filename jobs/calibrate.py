"""`diffseg calibrate`: the IoU that segments are expected to have, from a few labelled images."""

from dataclasses import asdict, replace
from math import isnan
from typing import Annotated

import typer

from jobs.shared import console, options


@options.with_options
def calibrate(
    url: options.Run,
    given: options.TruthOptions,
    read: options.CutOptions,
    name: Annotated[str, typer.Option(help="Of the table, for --calibration of other commands.")] = "iou",
    extend: options.Extend = False,
    json: options.Json = False,
) -> None:
    """Fit the score of segments to a few labelled images and keep their predicted IoU beside the run."""
    from pipeline.derived.corrections import NAME
    from pipeline.errors import ConfigError
    from pipeline.evaluation import calibrate as calibration
    from pipeline.evaluation.protocols import protocol_named
    from pipeline.evaluation.truth import corrected_truth, open_truth
    from pipeline.run.ledger import Ledger

    if extend == (given.truth is not None):
        raise ConfigError("--truth fits, --extend takes in new windows by an earlier fit: name one of them")
    rules = protocol_named(given.protocol, None, tuple(given.ignore or ()))
    ledger = Ledger.open(url, cut=read.at)
    if given.truth is None:
        if read.at:
            raise ConfigError("--extend goes on at the cut of the table: leave out --cut and --segments")
        done = calibration.extend(ledger, name)
    else:
        if given.truth == NAME:
            rules, samples = replace(rules, ignore=(*rules.ignore, 255, 65_535)), corrected_truth(url)[0]
        else:
            samples = open_truth(given.truth, rules, member=given.truth_key, listed=given.listed)
        done = calibration.calibrate(ledger, samples, rules, name, f"diffseg calibrate {ledger} --name {name}")
    if json:
        console.say_json({"output": str(ledger), **asdict(done)})
        return
    console.left_out(done.left_out)
    if given.truth is None:
        console.say(f"{done.table}: {done.windows:,} windows taken in, by the fit to {done.images:,} images")
        return
    console.say(f"{done.table}: predicted IoU of all segments in {done.windows:,} windows")
    console.say(f"fitted to {done.segments:,} segments of {done.images:,} images")
    above = f"{_shown(done.auroc)} (of the score: {_shown(done.auroc_of_score)})"
    console.say(f"on images that a fit has not seen: AUROC of IoU above .5 {above}, calibration error {done.error:.3f}")


def _shown(value: float) -> str:
    return "undefined" if isnan(value) else f"{value:.3f}"
