"""A window is searched by halves for the sample that kills workers."""

from collections.abc import Iterable, Iterator

from pipeline.messages import Probe


def pieces(probe: Probe, indices: Iterable[int]) -> Iterator[list[int]]:
    """The order in which a probe labels a window: the suspects in two halves, then the samples around them.

    indices: of the window's samples; known poison is left out.
    """
    healthy = [index for index in indices if index not in probe.poison]
    inside = [index for index in healthy if probe.first <= index <= probe.last]
    half = (len(inside) + 1) // 2
    before = [index for index in healthy if index < probe.first]
    after = [index for index in healthy if index > probe.last]
    yield from (piece for piece in (inside[:half], inside[half:], before, after) if piece)
