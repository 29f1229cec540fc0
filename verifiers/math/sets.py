"""Sets of real numbers as pieces of the line, in whichever way they are written: intervals, unions, inequalities."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verifiers.math import numeric
from verifiers.math.nodes import Apply, Group, Node, Number, Relation, Symbol, Union, add, children, negate, symbols
from verifiers.math.scalars import same_scalar

MAX_PIECES = 40

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Symbol("infty")
MINUS_INFINITY = negate(INFINITY)
_REALS = Symbol("\\RR")
_NO_VARIABLES = numeric.CONSTANTS | {"infty", "\\RR", "\\ZZ", "\\NN", "\\QQ", "\\CC"}
_ORDER_DIGITS = 40  # after the point, of ends that are put in order: equal ends in two spellings then tie


@dataclass(frozen=True, slots=True)
class _End:
    """An end of a piece. Ends are put in order by `value`; whether two are equal is for `same_scalar` to say."""

    node: Node
    value: Any
    closed: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """What lies between two ends; a single point has them equal and both closed."""

    low: _End
    high: _End


Pieces = tuple[_Piece, ...]


def is_real_set(node: Node) -> bool:
    """Whether a tree can only mean a set of reals: not `(1, 2)`, which may be a point, nor `{1, 2}`."""
    match node:
        case Union() | Apply(operator="setminus") | Apply(operator="+", arguments=(Symbol(name="\\RR"), _)):
            return True
        case Symbol():
            return node == _REALS
        case Relation():
            return node.operators != ("=",) and variable(node) is not None
        case Group(opening="", items=items):
            return all(isinstance(item, Relation) for item in items) and any(map(is_real_set, items))
        case _:
            return False


def same_real_set(answer: Node, reference: Node) -> bool | None:
    """Whether both are the same set of reals; None if one of them is no such set, or has an end that is no number."""
    first, second = _pieces(answer), _pieces(reference)
    if first is None or second is None:
        return None
    if None not in (names := (_name(answer), _name(reference))) and names[0] != names[1]:
        return False
    return len(first) == len(second) and all(_same_piece(a, b) for a, b in zip(first, second, strict=True))


def variable(relation: Relation) -> str | None:
    """The name that a relation between numbers is about, if it is one name alone on a side."""
    sides = list(relation.sides)
    match sides[0]:
        case Apply(
            operator="abs", arguments=(Symbol() as inner,) | (Apply(operator="+", arguments=(Symbol() as inner, *_)),)
        ):
            sides[0] = inner
    names = {side.name for side in sides if is_variable(side) and isinstance(side, Symbol)}
    return names.pop() if len(names) == 1 else None


def as_interval(relation: Relation) -> Node | None:
    """`a < x <= b` as the interval from a to b, whatever these are; None for a relation of another form."""
    match relation:
        case Relation(sides=(low, Symbol(), high), operators=(("<" | "<=") as first, ("<" | "<=") as second)):
            return Group("[" if first == "<=" else "(", (low, high), "]" if second == "<=" else ")")
        case _:
            return None


def _name(node: Node) -> str | None:
    match node:
        case Relation():
            return variable(node)
        case Group(opening="") | Union():
            return next((name for child in children(node) if (name := _name(child))), None)
        case _:
            return None


def is_variable(node: Node) -> bool:
    """Whether this is a letter that stands for a number."""
    return isinstance(node, Symbol) and node.name not in _NO_VARIABLES


def _same_piece(first: _Piece, second: _Piece) -> bool:
    return all(
        a.closed == b.closed and same_scalar(a.node, b.node)
        for a, b in ((first.low, second.low), (first.high, second.high))
    )


# Reading ---------------------------------------------------------------------------------------------------


def _pieces(node: Node) -> Pieces | None:
    match node:
        case Union():
            return _joined(map(_pieces, node.parts))
        case Symbol() if node == _REALS:
            return _interval(MINUS_INFINITY, INFINITY, False, False)
        case Apply(operator="setminus", arguments=(whole, removed)):
            return _without(_pieces(whole), _pieces(removed))
        case Apply(operator="+", arguments=(whole, Apply(operator="*", arguments=(Number(value=-1), removed)))):
            return _without(_pieces(whole), _pieces(removed))  # "R - {0}"
        case Relation(operators=("in",)):
            return _pieces(node.sides[1])
        case Relation():
            return _solutions(node)
        case Group(opening="\\{"):
            return _joined(_interval(item, item, True, True) for item in node.items)
        case Group(opening=""):
            return _of_relations(node.items)
        case Group(items=(low, high)):
            return _interval(low, high, node.opening == "[", node.closing == "]")
        case _:
            return None


def _interval(low: Node, high: Node, low_closed: bool, high_closed: bool) -> Pieces | None:
    ends = [_end(low, low_closed), _end(high, high_closed)]
    if ends[0] is None or ends[1] is None or ends[0].value > ends[1].value:
        return None
    if ends[0].value == ends[1].value and not (low_closed and high_closed):
        return ()
    return (_Piece(ends[0], ends[1]),)


def _end(node: Node, closed: bool) -> _End | None:
    if node in (INFINITY, MINUS_INFINITY):
        return _End(node, float("inf" if node == INFINITY else "-inf"), False)
    found = None if symbols(node) - numeric.CONSTANTS else numeric.real_value(node)
    if found is None:
        return None
    return _End(node, int(found[0].context.nint(found[0] * 10**_ORDER_DIGITS)), closed)


def _solutions(relation: Relation) -> Pieces | None:
    """Of `x < 5`, `1 <= x < 2`, `x != 3` or `|x| < 2`: a chain that compares one name with numbers."""
    match relation:
        case Relation(sides=(Apply(operator="abs", arguments=(inner,)), size), operators=(operator,)):
            return _within(inner, size, operator)
    name = variable(relation)
    if name is None or any(operator not in FLIPPED for operator in relation.operators):
        return None
    found: Pieces | None = _pieces(_REALS)
    for left, operator, right in zip(relation.sides, relation.operators, relation.sides[1:], strict=False):
        if left == Symbol(name):
            found = _common(found, _half_line(right, operator))
        elif right == Symbol(name):
            found = _common(found, _half_line(left, FLIPPED[operator]))
        else:
            return None
    return found


def _within(inner: Node, size: Node, operator: str) -> Pieces | None:
    """`|x - 1| < 2` as `-2 < x - 1 < 2`, `|x - 1| > 2` as what is left of the line."""
    terms = inner.arguments if isinstance(inner, Apply) and inner.operator == "+" else (inner,)
    centre = negate(add([Number(Fraction(0)), *terms[1:]]))
    low, high = add([centre, negate(size)]), add([centre, size])
    if not is_variable(terms[0]) or operator not in ("<", "<=", ">", ">="):
        return None
    inside = _interval(low, high, operator in ("<=", ">"), operator in ("<=", ">"))
    return inside if operator in ("<", "<=") else _without(_pieces(_REALS), inside)


def _half_line(number: Node, operator: str) -> Pieces | None:
    """Where `x operator number` holds."""
    match operator:
        case "<" | "<=":
            return _interval(MINUS_INFINITY, number, False, operator == "<=")
        case ">" | ">=":
            return _interval(number, INFINITY, operator == ">=", False)
        case "=":
            return _interval(number, number, True, True)
        case "!=" if isinstance(number, Apply) and number.operator == "pm":
            return _common(_half_line(number.arguments[0], "!="), _half_line(negate(number.arguments[0]), "!="))
        case _:
            return _without(_pieces(_REALS), _interval(number, number, True, True))


def _of_relations(items: Sequence[Node]) -> Pieces | None:
    """`x < 1 or x > 2` are two pieces; `x > 1, x < 2` and `x != 1, x != 2` hold together."""
    if len({_name(item) for item in items}) != 1:
        return None
    parts = [_pieces(item) for item in items]
    together = parts[0]
    for part in parts[1:]:
        together = _common(together, part)
    return together if together != () else _joined(parts)


# Arithmetic of sets ----------------------------------------------------------------------------------------


def _joined(sets: Iterable[Pieces | None]) -> Pieces | None:
    """The union, as pieces in order that do not touch."""
    found: list[_Piece] = []
    for pieces in sets:
        if pieces is None:
            return None
        found.extend(pieces)
    if len(found) > MAX_PIECES:
        return None
    merged: list[_Piece] = []
    for piece in sorted(found, key=lambda p: (p.low.value, not p.low.closed)):
        last = merged[-1] if merged else None
        if last is None or not _touch(last.high, piece.low):
            merged.append(piece)
        else:
            merged[-1] = _Piece(last.low, max(last.high, piece.high, key=lambda e: (e.value, e.closed)))
    return tuple(merged)


def _touch(high: _End, low: _End) -> bool:
    return high.value > low.value or (high.value == low.value and (high.closed or low.closed))


def _common(first: Pieces | None, second: Pieces | None) -> Pieces | None:
    if first is None or second is None:
        return None
    found = []
    for a in first:
        for b in second:
            low = max(a.low, b.low, key=lambda e: (e.value, not e.closed))
            high = min(a.high, b.high, key=lambda e: (e.value, e.closed))
            if low.value < high.value or (low.value == high.value and low.closed and high.closed):
                found.append(_Piece(low, high))
    return tuple(found)


def _without(whole: Pieces | None, removed: Pieces | None) -> Pieces | None:
    if whole is None or removed is None:
        return None
    for piece in removed:
        below = _Piece(_End(MINUS_INFINITY, float("-inf"), False), _opposite(piece.low))
        above = _Piece(_opposite(piece.high), _End(INFINITY, float("inf"), False))
        whole = _common(whole, (below, above))
    return whole


def _opposite(end: _End) -> _End:
    return _End(end.node, end.value, not end.closed)
