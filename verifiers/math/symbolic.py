"""The last rung: sympy proves or refutes that two expressions are identical.

The expression is built from our own tree, node by node: no text ever reaches sympy. What comes here already agrees
numerically to many digits, so sympy has the last word only where it can decide.
"""

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from verifiers.math.nodes import Apply, Node, Number, Quantity, Symbol, children, size

if TYPE_CHECKING:
    import sympy

MAX_NODES = 60
"""In both trees together; larger ones stay with the numerical evidence, since simplification may take minutes."""
MAX_EXPONENT = 64
MAX_TERMS = 400
"""Of a tree that is multiplied out."""

_sympy_lock = threading.Lock()
"""sympy evaluates at a working precision that is a state of the whole process."""


def proven(first: Node, second: Node) -> bool | None:
    """True or False where sympy proves that two scalar expressions are or are not identical, else None."""
    if size(first) + size(second) > MAX_NODES or _terms(first) + _terms(second) > MAX_TERMS:
        return None
    with _sympy_lock:
        try:
            difference = _expression(first) - _expression(second)
        except _Beyond:
            return None
        return True if _vanishes(difference) else difference.equals(0)


def _vanishes(difference: "sympy.Expr") -> bool:
    """Whether arithmetic alone shows that it is 0; `equals` would take a hundred times as long to see it."""
    import sympy

    numerator = sympy.numer(sympy.together(difference))
    return bool(difference.is_zero or sympy.expand(numerator, complex=numerator.has(sympy.I)).is_zero)


class _Beyond(Exception):
    """An operation or a size that is not handed to sympy."""


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

    match node:
        case Number():
            return sympy.Rational(node.value.numerator, node.value.denominator)
        case Symbol():
            constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
            # Real and positive, as the numerical rung takes its points: roots and logarithms then simplify.
            return constants.get(node.name) or sympy.Symbol(node.name, positive=True)
        case Quantity():
            return _expression(node.value)
        case Apply(operator="^", arguments=(base, exponent)):
            if isinstance(exponent, Number) and abs(exponent.value) > MAX_EXPONENT:
                raise _Beyond
            return _expression(base) ** _expression(exponent)
        case Apply(operator="root", arguments=(radicand, degree)):
            return sympy.real_root(_expression(radicand), _expression(degree))
        case Apply() if node.operator in _functions():
            return _functions()[node.operator](*map(_expression, node.arguments))
        case _:
            raise _Beyond


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    import sympy

    same_name = ("exp", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")
    inverse = ("sin", "cos", "tan", "cot", "sec", "csc")
    return {
        "+": sympy.Add,
        "*": sympy.Mul,
        "abs": sympy.Abs,
        "deg": lambda value: value * sympy.pi / 180,
        "ln": sympy.log,
        "log": sympy.log,
        **{name: getattr(sympy, name) for name in same_name},
        **{f"arc{name}": getattr(sympy, f"a{name}") for name in inverse},
    }
