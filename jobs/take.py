"""`diffseg import`: what people corrected, taken back as a revision that every reader prefers."""

from typing import Annotated

import typer

from jobs.shared import console, options


@options.with_options
def take(
    url: options.Run,
    read: options.ReadOptions,
    file: Annotated[
        str | None,
        typer.Argument(help="CVAT 1.1, Label Studio or COCO instances, in a zip or not: of `select`'s images."),
    ] = None,
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW, repeatable: two with one NEW are merged.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Category that is unknown from now on.")] = None,
    json: options.Json = False,
) -> None:
    """Take corrected masks and categories back, given the flags of the export; or rename, merge and drop categories."""
    from dataclasses import asdict

    from pipeline.errors import ConfigError
    from pipeline.review.given import read_given
    from pipeline.review.take import rename as rename_categories
    from pipeline.review.take import take

    asked = [each.partition("=")[::2] for each in rename or ()] + [(each, None) for each in drop or ()]
    if (file is None) == (not asked):
        raise ConfigError("FILE corrects, --rename and --drop change names: give one of them")
    if odd := [old for old, new in asked if not old or new == "" or [each for each, _ in asked].count(old) > 1]:
        raise ConfigError(f"--rename OLD=NEW, --drop OLD: {odd[0]!r} is there twice, or to have no name")
    ledger = read.open(url)
    if file is None:
        table = rename_categories(ledger, dict(asked))
        console.say_json({"table": table}) if json else console.say(f"{table}: {len(asked)} categories")
        return
    done = take(ledger, read_given(file))
    if json:
        console.say_json(asdict(done))
        return
    if done.left_out:
        console.note(f"left out: {done.left_out:,} images that are as they were, or without a mask")
    if done.added:
        console.say(f"new categories: {', '.join(done.added)}")
    console.say(f"{done.table}: {done.images:,} images as people want them, {done.segments:,} segments are otherwise")
