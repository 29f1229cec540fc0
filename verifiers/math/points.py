"""Where two expressions are compared: points at which different ones are unlikely to agree."""

from collections.abc import Iterator
from fractions import Fraction

from verifiers.math.exact import rational
from verifiers.math.nodes import CONSTANTS, Apply, Node, TooCostly, children, symbols

MAX_SYMBOLS = 12
MIXED_POINTS, MANY_POINTS = 6, 50
INTEGER_POINTS = 16
MAX_FAR = 10**12


def sample_points(names: list[str], *nodes: Node) -> Iterator[dict[str, Fraction]]:
    """Points near 0, beyond all numbers in the trees, in sign patterns that tell symbols apart; mixed ones; integers.

    There are many of these, consecutive ones, where a tree may be periodic in them, as (-1)^n or floor(n/2).
    """
    if len(names) > MAX_SYMBOLS:
        raise TooCostly("too many symbols")
    if not names:
        yield {}
        return
    if any(map(_is_discrete, nodes)):
        yield from _integers(names, INTEGER_POINTS)
        for number in (-2, -1, 29, 60):
            yield {name: Fraction(number + 2 + place) for place, name in enumerate(names)}
        return
    edge = max(map(_largest_number, nodes))
    far = 3 + 2 * edge
    places = range(len(names))
    signs = [[-1 if place >> bit & 1 else 1 for place in places] for bit in range((len(names) - 1).bit_length())]
    yield {name: _scattered(place, 5) for place, name in enumerate(names)}
    for pattern in ([1] * len(names), *signs, [-1] * len(names)):
        yield {name: pattern[place] * _scattered(place, 11) for place, name in enumerate(names)}
        yield {name: pattern[place] * (edge + _scattered(place, 13)) for place, name in enumerate(names)}
    for number in range(MANY_POINTS if any(map(_has_branches, nodes)) else MIXED_POINTS):
        yield {name: _mixed(number * len(names) + place, far) for place, name in enumerate(names)}
    yield from _integers(names, INTEGER_POINTS if any(map(_may_be_periodic, nodes)) else 2)


def _integers(names: list[str], count: int) -> Iterator[dict[str, Fraction]]:
    """Consecutive ones for the first symbol, scattered ones for the others."""
    for number in range(count):
        yield {
            name: Fraction(pow(place + 2, number + 3, 9973) % INTEGER_POINTS if place else number) + 2
            for place, name in enumerate(names)
        }


def _scattered(place: int, salt: int) -> Fraction:
    """Between 0.15 and 2.2, so that no small relation holds between symbols."""
    return Fraction(pow(place + 2, salt, 9973) % 4001 + 300, 2003)


def _mixed(number: int, far: Fraction) -> Fraction:
    """Of any sign, from a tenth to a thousand times `far`."""
    residue = pow(number + 2, 17, 9973)
    scale = (Fraction(1, 10), Fraction(1), Fraction(7), far, 1000 * far)[residue % 5]
    return (-1) ** (residue // 5 % 2) * scale * _scattered(number, 19)


def _largest_number(node: Node) -> Fraction:
    try:
        value = rational(node)
    except TooCostly:
        value = Fraction(MAX_FAR)
    if value is not None:
        return min(abs(value), Fraction(MAX_FAR))
    return max(map(_largest_number, children(node)), default=Fraction(1))


def _has_branches(node: Node) -> bool:
    """Whether a tree may equal another one on a part of the line only, as |x| does x."""
    return (isinstance(node, Apply) and node.operator in ("abs", "max", "min")) or any(
        map(_has_branches, children(node))
    )


def _is_discrete(node: Node) -> bool:
    """Whether a tree has values at integers only."""
    if isinstance(node, Apply) and node.operator in ("!", "binom") and symbols(node) - CONSTANTS:
        return True
    return any(map(_is_discrete, children(node)))


def _may_be_periodic(node: Node) -> bool:
    """Whether a tree may be periodic in an integer."""
    match node:
        case Apply(operator="floor" | "ceil"):
            return True
        case Apply(operator="^", arguments=(_, exponent)) if symbols(exponent) - CONSTANTS:
            return True
        case Apply(operator="sin" | "cos" | "tan", arguments=(argument,)) if "pi" in symbols(argument):
            return True
        case _:
            return any(map(_may_be_periodic, children(node)))
