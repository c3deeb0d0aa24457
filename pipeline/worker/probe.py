"""A window is searched by halves for the sample that kills."""

from collections.abc import Iterable, Iterator

from pipeline.messages import Probe


def pieces(probe: Probe, indices: Iterable[int]) -> Iterator[list[int]]:
    """The order in which a probe labels a window: the suspect half by half, then what surrounds it.

    indices: of the samples the window has; known poison is left out.
    """
    left = [index for index in indices if index not in probe.poison]
    inside = [index for index in left if probe.first <= index <= probe.last]
    half = (len(inside) + 1) // 2
    before = [index for index in left if index < probe.first]
    after = [index for index in left if index > probe.last]
    yield from (piece for piece in (inside[:half], inside[half:], before, after) if piece)
