"""Edges between cells: how far the attention maps of neighbours are from each other, on the finest level alone.

Coarser levels repeat a map over several cells, which would hide edges inside of these.
Letters: B images, N cells h x w, R rows of cells or edges.
"""

from torch import Tensor

from diffseg.types import Float


def cell_edges(
    finest: Float[Tensor, "B N N"], grid: tuple[int, int], floor: float
) -> tuple[Float[Tensor, "B h _"], Float[Tensor, "B _ w"]]:
    """Symmetric KL in nats between cells beside each other, and above each other; one edge of 0 where there is none.

    floor: least probability.
    """
    h, w = grid
    maps = finest.unflatten(1, grid)
    across, down = finest.new_zeros(len(finest), h, max(1, w - 1)), finest.new_zeros(len(finest), max(1, h - 1), w)
    above: tuple[Tensor, Tensor] | None = None
    for y in range(h):  # a row at a time: the logarithms of all maps would take as much memory as these
        row = maps[:, y].float().clamp(min=floor)
        here = row, row.log()
        if w > 1:
            across[:, y] = _apart(*(part[:, :-1] for part in here), *(part[:, 1:] for part in here))
        if above is not None:
            down[:, y - 1] = _apart(*above, *here)
        above = here
    return across, down


def _apart(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Float[Tensor, "B R"]:
    return ((p - q) * (log_p - log_q)).sum(-1) / 2
