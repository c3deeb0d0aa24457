"""Scores of segments: how far each can be trusted, from what merging has computed already.

Letters: B images, P proposals, h x w cells of the attention grid, R runs and S segments of all images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffseg.labels.rle import RunLengths, Segments
from diffseg.method.merge import Proposals
from diffseg.types import Float, Int

PARTS = 1 << 24  # of one pixel's score: integers have an equal sum in whatever order a GPU adds them

Box = tuple[int, int, int, int]


def score(
    segments: Segments, rle: RunLengths, proposals: Proposals, grid: tuple[int, int], windows: Sequence[Box]
) -> Float[Tensor, " S"]:
    """Mean margin of a segment's proposal over the runner-up, times the proposal's stability; in [0, 1].

    The margin is 1 where no other proposal attends to a pixel and 0 where another attends as much or more. The score is
    0 for the only segment of an image without proposals.

    windows: where the grid lies in each label map, as (top, left, height, width).
    """
    margin = sum_along_runs(margins(proposals.maps.unflatten(-1, grid))[..., None], rle.label, rle, windows)[:, 0]
    trusted = margin * proposals.stability[rle.image, rle.label.clamp(min=0)]
    whole = (trusted * PARTS).round().long().where(segments.of_run >= 0, 0)
    total = torch.zeros_like(segments.area).scatter_add_(0, segments.of_run.clamp(min=0), whole)
    return (total.double() / PARTS / segments.area).clamp(0, 1)


def margins(proposals: Float[Tensor, "B P h w"]) -> Float[Tensor, "B P h w"]:
    """Lead of each proposal over the strongest other, as a share of its own attention; 0 where it does not lead."""
    if proposals.shape[1] == 1:
        return (proposals > 0).to(proposals.dtype)
    best, runner_up = proposals.topk(2, dim=1).values.split(1, dim=1)
    other = torch.where(proposals == best, runner_up, best)
    return (1 - other / proposals).clamp(min=0).nan_to_num(0.0)


def sum_along_runs(
    values: Float[Tensor, "B P h w c"], channel: Int[Tensor, " R"], rle: RunLengths, windows: Sequence[Box]
) -> Float[Tensor, "R c"]:
    """Sum over each run's pixels of what its channel of the P has in the cell below.

    Between running totals along a grid row this is one difference a run, however many pixels it has.
    """
    _, _, h, w, _ = values.shape
    totals = torch.nn.functional.pad(values.double().cumsum(3), (0, 0, 1, 0))
    tops, lefts, heights, widths = rle.per_run(windows, torch.long).unbind(-1)
    row = ((2 * (rle.row - tops) + 1) * h // (2 * heights)).clamp(0, h - 1)
    columns = torch.stack([rle.column, rle.column + rle.length]) - lefts  # where runs begin, and where they end
    x = (columns.double() * w / widths).clamp(0, w)
    cell = x.long().clamp(max=w - 1)
    line = (rle.image, channel.clamp(min=0), row)
    begin, end = torch.lerp(totals[*line, cell], totals[*line, cell + 1], (x - cell)[..., None])
    total: Tensor = (end - begin) * (widths / w)[:, None]
    return total
