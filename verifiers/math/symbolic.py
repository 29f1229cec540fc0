"""The last rung: sympy decides rational functions exactly.

What comes here already agrees numerically to many digits at a handful of points, which is no proof: a polynomial may
vanish at all of them. Multiplied out, two rational functions are equal or they are not. The expressions are built from
our own tree, node by node: no text ever reaches sympy. General simplification (`simplify`, `equals`) is not asked for:
it takes seconds for tan 2x, and minutes for less than a model can write.
"""

import math
import threading
from typing import TYPE_CHECKING

from verifiers.math.exact import rational
from verifiers.math.nodes import Apply, Node, Number, Symbol, TooCostly, children, size, symbols

if TYPE_CHECKING:
    import sympy

MAX_NODES = 200
MAX_EXPONENT = 64
MAX_TERMS = 400
"""Of a tree that is multiplied out."""

_sympy_lock = threading.Lock()
"""sympy's caches and working precision are a state of the whole process."""


def same_rational_function(first: Node, second: Node) -> bool | None:
    """Whether two scalar expressions are identical; None if they are no rational functions, or too large to multiply
    out."""
    if size(first) + size(second) > MAX_NODES or _monomials(first) + _monomials(second) > MAX_TERMS:
        return None
    import sympy

    with _sympy_lock:
        try:
            difference = sympy.together(_expression(first) - _expression(second))
        except _Beyond:
            return None
        return bool(sympy.expand(sympy.numer(difference)).is_zero)


class _Beyond(Exception):
    """Not a rational function, or an exponent that is too large."""


def _monomials(node: Node) -> int:
    """At most as many are left when a tree is multiplied out."""
    names = len(symbols(node))
    return min(_terms(node), math.comb(min(_degree(node), MAX_TERMS) + names, names))


def _degree(node: Node) -> int:
    match node:
        case Symbol():
            return 1
        case Apply(operator="+"):
            return max(map(_degree, node.arguments))
        case Apply(operator="^", arguments=(base, Number(value=exponent))) if exponent.denominator == 1:
            return _degree(base) * abs(exponent.numerator)
        case _:
            return sum(map(_degree, children(node)))


def _terms(node: Node) -> int:
    """At most as many terms has the tree when it is multiplied out."""
    match node:
        case Apply(operator="+"):
            return sum(map(_terms, node.arguments))
        case Apply(operator="^", arguments=(base, Number(value=exponent))) if exponent.denominator == 1:
            terms = _terms(base)
            return terms if terms == 1 else math.comb(min(abs(exponent.numerator), MAX_TERMS) + terms - 1, terms - 1)
        case _:
            return math.prod(map(_terms, children(node)))


def _expression(node: Node) -> "sympy.Expr":
    import sympy

    try:
        value = rational(node)
    except TooCostly as error:
        raise _Beyond from error
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    match node:
        case Symbol(name="i"):
            return sympy.I
        case Symbol():  # pi and e too: no polynomial with rational coefficients vanishes at either, as far as is known
            return sympy.Symbol(node.name)
        case Apply(operator="+"):
            return sympy.Add(*map(_expression, node.arguments))
        case Apply(operator="*"):
            return sympy.Mul(*map(_expression, node.arguments))
        case Apply(operator="^", arguments=(base, Number(value=exponent))) if exponent.denominator == 1:
            if abs(exponent) > MAX_EXPONENT:
                raise _Beyond
            return _expression(base) ** exponent.numerator
        case _:
            raise _Beyond
