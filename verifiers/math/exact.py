"""Exact value of a tree that is a rational number. Sizes are checked before anything large is computed."""

import math
from collections.abc import Callable
from fractions import Fraction

from verifiers.math.nodes import Apply, Node, Number, TooCostly

MAX_BITS = 16_000
MAX_FACTORIAL = 1_000
MAX_ROOT = 64


def rational(node: Node) -> Fraction | None:
    """The value if the tree is built of rationals by operations that give rationals, else None.

    Raises TooCostly if a number would have more than `MAX_BITS` bits.
    """
    match node:
        case Number():
            return node.value
        case Apply():
            operation = _OPERATIONS.get(node.operator)
            if operation is None:
                return None
            arguments = []
            for argument in node.arguments:
                value = rational(argument)
                if value is None:
                    return None
                arguments.append(value)
            result = operation(*arguments)
            return None if result is None else _bounded(result)
        case _:
            return None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise TooCostly("number too long")
    return value


def _sum(*terms: Fraction) -> Fraction:
    total = Fraction(0)
    for term in terms:
        total = _bounded(total + term)
    return total


def _product(*factors: Fraction) -> Fraction:
    total = Fraction(1)
    for factor in factors:
        total = _bounded(total * factor)
    return total


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0:
        return Fraction(0) if exponent > 0 else None
    if exponent.denominator != 1:
        root = _root(base, Fraction(exponent.denominator))
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if abs(base) == 1:
        return Fraction(1) if exponent.numerator % 2 == 0 else base
    if abs(exponent) * _bits(base) > MAX_BITS:
        raise TooCostly("power too large")
    return base**exponent.numerator


def _root(value: Fraction, degree: Fraction) -> Fraction | None:
    """The real root if it is rational; an odd root of a negative number is negative."""
    if degree.denominator != 1 or not 1 <= degree <= MAX_ROOT:
        return None
    n = degree.numerator
    if value < 0:
        root = _root(-value, degree) if n % 2 else None
        return None if root is None else -root
    numerator, denominator = _integer_root(value.numerator, n), _integer_root(value.denominator, n)
    if numerator**n != value.numerator or denominator**n != value.denominator:
        return None
    return Fraction(numerator, denominator)


def _integer_root(value: int, degree: int) -> int:
    """floor(value ** (1/degree)) by Newton's iteration from above."""
    if value < 2 or degree == 1:
        return value
    if degree == 2:
        return math.isqrt(value)
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _factorial(value: Fraction, step: int = 1) -> Fraction | None:
    if value.denominator != 1 or value < 0:
        return None
    if value > MAX_FACTORIAL:
        raise TooCostly("factorial too large")
    return Fraction(math.prod(range(value.numerator, 0, -step)))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n:
        return None
    if n > MAX_BITS:
        raise TooCostly("binomial too large")
    return Fraction(math.comb(n.numerator, k.numerator))


def _integers_only(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def apply(*arguments: Fraction) -> Fraction | None:
        if any(a.denominator != 1 for a in arguments):
            return None
        return Fraction(function(*(a.numerator for a in arguments)))

    return apply


_OPERATIONS: dict[str, Callable[..., Fraction | None]] = {
    "+": _sum,
    "*": _product,
    "^": _power,
    "root": _root,
    "!": lambda value: _factorial(value),
    "!!": lambda value: _factorial(value, step=2),
    "binom": _binomial,
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "gcd": _integers_only(math.gcd),
    "lcm": _integers_only(math.lcm),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
}
