r"""Names that an answer may choose: an integer that counts, `2k\pi, k \in \mathbb{Z}`, and constants of integration."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations

from verifiers.math.nodes import (
    CONSTANTS,
    Apply,
    Group,
    Node,
    Number,
    Relation,
    Symbol,
    Unreadable,
    add,
    listed,
    negate,
    replaced,
    symbols,
)

_CONSTANTS = frozenset(("C", *(f"{letter}_{number}" for letter in "Cc" for number in (1, 2, 3))))
_NAMES_OF_CONSTANTS = _CONSTANTS | {"c", "K", "k", "A", "B"}
_COUNTERS = frozenset("kmnljpq")  # names that an integer has without being said to be one
_SHIFTED = frozenset(("\\ZZ", "\\RR"))  # where k may count backwards or from elsewhere


def family_readings(answer: Node, reference: Node) -> Iterator[tuple[Node, Node]] | None:
    r"""What to compare if one side is a family like `2k\pi, k \in \mathbb{Z}`: any pair that is equal will do.

    The answer may name its parameter otherwise, count backwards, or start up to two further. None if neither side is a
    family. Raises Unreadable if only one is, with more than one letter on the other.
    """
    domains = _domain(answer), _domain(reference)
    if domains == (None, None) or (None in domains and "\\ZZ" not in domains):
        return None
    members, name = _family(answer)
    wanted, counter = _family(reference)
    is_sequence = isinstance(wanted, Relation) and any(f"_{counter}" in name for name in symbols(wanted.sides[0]))
    shifts = (0, 1, -1, 2, -2) if set(domains) & _SHIFTED and not is_sequence else (0,)
    return (
        (replaced(members, name, add([count, Number(Fraction(shift))]) if shift else count), wanted)
        for shift in shifts
        for count in ((Symbol(counter), negate(Symbol(counter))) if len(shifts) > 1 else (Symbol(counter),))
    )


def _domain(node: Node) -> str | None:
    r"""What the parameter of `2k\pi, k \in \mathbb{Z}` runs through; None for anything else."""
    match node:
        case Group(opening="", items=(_, *_, Relation(operators=("in",), sides=(Symbol(), Symbol(name=name))))):
            return name
        case _:
            return None


def _family(node: Node) -> tuple[Node, str]:
    """The members and the name of their parameter, which one side may leave unsaid."""
    names = symbols(node) - CONSTANTS
    if isinstance(node, Group) and _domain(node):
        condition = node.items[-1]
        assert isinstance(condition, Relation)
        names = symbols(condition.sides[0])
        node = listed(node.items[:-1])
    elif isinstance(node, Relation):
        names = (names - symbols(node.sides[0])) & _COUNTERS
    else:
        names &= _COUNTERS if len(names) == 1 else names
    if len(names) != 1:
        raise Unreadable("no parameter")
    return node, names.pop()


def without_quantifier(node: Node) -> Node:
    r"""`f(x) = x, x \in \mathbb{R}`, which is how "for all x" is read, as `f(x) = x`."""
    match node:
        case Group(opening="", items=(Relation(sides=(Apply(operator="call", arguments=(_, name)), *_)) as rule, last)):
            if last == name or (isinstance(last, Relation) and last.operators == ("in",) and last.sides[0] == name):
                return rule
    return node


def with_constants_of(answer: Node, reference: Node) -> Iterator[Node]:
    """The answer with its constants of integration named as those of the reference, in every order."""
    theirs = sorted(symbols(reference) & _CONSTANTS)
    mine = sorted(symbols(answer) & _NAMES_OF_CONSTANTS)
    if not theirs or len(mine) != len(theirs) or not all(map(_are_linear, ((answer, mine), (reference, theirs)))):
        return
    for order in permutations(theirs):
        renamed = answer
        for place, name in enumerate(mine):
            renamed = replaced(renamed, name, Symbol(f"constant {place}"))
        for place, name in enumerate(order):
            renamed = replaced(renamed, f"constant {place}", Symbol(name))
        yield renamed


def _are_linear(case: tuple[Node, list[str]]) -> bool:
    """Whether constants stand only where constants of integration do: as terms, or factors of terms."""
    node, names = case
    side = node.sides[-1] if isinstance(node, Relation) else node
    if not symbols(side) - set(names) - CONSTANTS:
        return False  # no function that they are the constants of
    terms = side.arguments if isinstance(side, Apply) and side.operator == "+" else (side,)
    for term in terms:
        factors = term.arguments if isinstance(term, Apply) and term.operator == "*" else (term,)
        if isinstance(term, Symbol) and len(terms) == 1:
            return False
        if any(symbols(factor) & set(names) and not isinstance(factor, Symbol) for factor in factors):
            return False
    return True


def antiderivative(node: Node) -> Node | None:
    """F of `F + C`; None for anything else."""
    match node:
        case Apply(operator="+", arguments=terms) if sum(term == Symbol("C") for term in terms) == 1:
            return add([term for term in terms if term != Symbol("C")])
        case _:
            return None
