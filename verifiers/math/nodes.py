"""What an answer is once it is read: a small tree, independent of any algebra system."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


class Unreadable(Exception):
    """The text is not an expression that this package reads. The answer is then compared as text only."""


class TooCostly(Exception):
    """Deciding would take more digits or work than an honest answer needs."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational. `decimals` counts the digits after the point where it was written with one, else 0."""

    value: Fraction
    decimals: int = 0


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, a constant (`pi`, `e`, `i`) or any name that has no further meaning here."""

    name: str


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits in a stated base, such as 52_8."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation or function; `+` and `*` take any number of arguments."""

    operator: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit; `unit` is canonical, or None where the word is not a known unit."""

    value: "Node"
    unit: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """Items between brackets: a tuple or open interval `(`, a list or closed interval `[`, a set `{`.

    A list without brackets has empty `opening` and `closing`.
    """

    opening: str
    items: tuple["Node", ...]
    closing: str


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets or intervals."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain such as a < b <= c: one side more than there are operators."""

    sides: tuple["Node", ...]
    operators: tuple[str, ...]


Node = Number | Symbol | Numeral | Apply | Quantity | Group | Union | Matrix | Relation

CONSTANTS = frozenset(("pi", "e", "i"))
"""Symbols that stand for one number."""

MINUS_ONE = Number(Fraction(-1))


def add(terms: list[Node]) -> Node:
    """The sum of one or more terms."""
    return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))


def multiply(factors: list[Node]) -> Node:
    """The product of one or more factors."""
    return factors[0] if len(factors) == 1 else Apply("*", tuple(factors))


def negate(node: Node) -> Node:
    """-node; a plain number keeps being a plain number."""
    if isinstance(node, Number):
        return Number(-node.value, node.decimals)
    if isinstance(node, Quantity):
        return Quantity(negate(node.value), node.unit)
    return Apply("*", (MINUS_ONE, node))


def invert(node: Node) -> Node:
    """1/node."""
    return Apply("^", (node, MINUS_ONE))


def listed(items: Sequence[Node]) -> Node:
    """A list without brackets of several items, or the only one."""
    return items[0] if len(items) == 1 else Group("", tuple(items), "")


def replaced(node: Node, name: str, value: Node) -> Node:
    """The tree with a value for each symbol of that name."""

    def within(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        return tuple(replaced(child, name, value) for child in nodes)

    match node:
        case Symbol():
            return value if node.name == name else node
        case Apply():
            return Apply(node.operator, within(node.arguments))
        case Quantity():
            return Quantity(replaced(node.value, name, value), node.unit)
        case Group():
            return Group(node.opening, within(node.items), node.closing)
        case Union():
            return Union(within(node.parts))
        case Matrix():
            return Matrix(tuple(within(row) for row in node.rows))
        case Relation():
            return Relation(within(node.sides), node.operators)
        case _:
            return node


def children(node: Node) -> tuple[Node, ...]:
    """The parts that a node is made of, in order."""
    match node:
        case Apply():
            return node.arguments
        case Quantity():
            return (node.value,)
        case Group():
            return node.items
        case Union():
            return node.parts
        case Matrix():
            return tuple(cell for row in node.rows for cell in row)
        case Relation():
            return node.sides
        case _:
            return ()


def size(node: Node) -> int:
    """How many parts a tree has."""
    return 1 + sum(size(child) for child in children(node))


def symbols(node: Node) -> set[str]:
    """Names of all symbols in a tree."""
    if isinstance(node, Symbol):
        return {node.name}
    names: set[str] = set()
    for child in children(node):
        names |= symbols(child)
    return names
