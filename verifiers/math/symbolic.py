"""Deciding by algebra, with sympy, whether two expressions are identical.

Sympy's expression is built from our own tree, never from text. It may take long and much memory for what looks
harmless: sizes are checked first, and the pool kills a worker whose time is up.
"""

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

from verifiers.math.exact import MAX_BITS, rational
from verifiers.math.nodes import Apply, Node, Number, Quantity, Symbol, TooCostly

MAX_TERMS = 500  # of an expression, were it multiplied out
MAX_DEGREE = 64  # of a power that is multiplied out

Expression = Any  # sympy's Expr: importing its type would import sympy, which takes half a second

_ARITHMETIC = frozenset(("+", "*", "^", "root"))
_one_at_a_time = threading.Lock()  # sympy keeps its precision, caches and random numbers in globals


class _NotAlgebra(Exception):
    """An operation that sympy is not asked about."""


def equal(first: Node, second: Node, bounded: bool) -> bool | None:
    """Whether two scalar expressions are identical; None if sympy cannot tell.

    `bounded` says that all values are known to be of moderate size: without it only arithmetic is looked at.
    True where it is proved for real symbols, up to single points. False only where a nonzero difference is proved:
    a number that is not zero, or a rational function with a coefficient that is not.
    """
    with _one_at_a_time:
        try:
            build = _Builder(bounded).expression
            return _equal(build(first), build(second))
        except (_NotAlgebra, TooCostly):
            return None
        except MemoryError:
            raise
        except Exception:  # sympy fails in many ways on odd expressions; that decides nothing
            return None


def _equal(first: Expression, second: Expression) -> bool | None:
    import sympy

    if first.has(sympy.nan, sympy.oo, sympy.zoo) or second.has(sympy.nan, sympy.oo, sympy.zoo):
        return None
    if first == second:
        return True
    difference = first - second
    if _terms(difference) > MAX_TERMS:
        return None
    if sympy.expand(difference) == 0:
        return True
    if difference.is_number:
        return _is_zero(difference)
    if difference.is_rational_function():
        numerator, _ = sympy.fraction(sympy.together(difference))
        zeros = [_is_zero(c) for c in sympy.Poly(numerator, *difference.free_symbols).coeffs()]
        return False if False in zeros else None if None in zeros else True
    return True if sympy.simplify(difference) == 0 else None
