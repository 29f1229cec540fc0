"""Deciding whether two expressions are identical, by evaluating both at points to many digits.

There are as many digits as it takes to tell the two apart: their number grows with the range of sizes of all
intermediate values and with the digits that the texts spell out, so that no tolerance can hide a difference which the
answers state. What would need more than `MAX_DIGITS` is refused.
"""

import math
import threading
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from verifiers.math.exact import MAX_FACTORIAL, rational
from verifiers.math.nodes import CONSTANTS, Apply, Node, Number, Symbol, TooCostly, Unreadable, symbols
from verifiers.math.points import sample_points

BASE_DIGITS = 120
MAX_DIGITS = 1_500
MAX_MAGNITUDE = 300  # decimal digits before the point of any intermediate value
MAX_EXPONENT = 100_000  # of any base, however near to 1: each digit of it costs one of the result
MAX_STEEP = 3_000  # along which sin, exp and their kin grow
MAX_GAMMA_BITS = 1_000  # of precision, beyond which a factorial that is not rational takes seconds
NEEDED_POINTS = 2

Value = Any  # a real or complex number of the context in use


def identical(first: Node, second: Node) -> bool:
    """Whether two scalar expressions have the same value, whatever real values their symbols take.

    Compared at points where both are real if there are such points, else at all points where both are finite.
    Raises TooCostly if that needs more digits than `MAX_DIGITS`, Unreadable if an operation has no values.
    """
    names = sorted((symbols(first) | symbols(second)) - CONSTANTS)
    is_complex = "i" in symbols(first) | symbols(second)  # then there are no points among the reals to wait for
    real_points, other_points = 0, []
    for point in sample_points(names, first, second):
        outcome = _equal_at(first, second, point, is_complex)
        if outcome is None:
            continue
        equal, is_real = outcome
        if not is_real:
            other_points.append(equal)
        elif equal:
            real_points += 1
        else:
            return False
        if not equal and is_complex:
            return False
    needed = NEEDED_POINTS if names else 1
    return real_points >= needed or (real_points + len(other_points) >= needed and all(other_points))


def proportional(first: Node, second: Node, positive: bool) -> bool:
    """Whether first = c * second for one constant c != 0 (c > 0 if `positive`), so that both vanish together.

    Raises TooCostly and Unreadable as `identical` does.
    """
    names = sorted((symbols(first) | symbols(second)) - CONSTANTS)
    if not names:
        return False
    constant, count = None, 0
    for point in sample_points(names, first, second):
        found = _ratio_at(first, second, point)
        if found is None:
            continue
        ratio, error = found
        context = _precise_context()
        if constant is None:
            constant = ratio
            if constant == 0 or (positive and (context.im(constant) != 0 or context.re(constant) <= 0)):
                return False
        elif abs(ratio - constant) > abs(constant) * error:
            return False
        count += 1
    return count >= NEEDED_POINTS


def differ_by_constant(first: Node, second: Node) -> bool:
    """Whether first - second has one value whatever the real values of the symbols: both have the same derivatives."""
    names = sorted((symbols(first) | symbols(second)) - CONSTANTS)
    differences = []
    for point in sample_points(names, first, second) if names else ():
        found = _precise_values(first, second, point)
        if found is not None:
            (a, b), tolerance, evaluation = found
            if evaluation.context.im(a - b) == 0:
                differences.append((a - b, tolerance))
    first_difference, least = differences[0] if differences else (0, 0)
    return len(differences) >= NEEDED_POINTS and all(
        abs(difference - first_difference) <= tolerance + least for difference, tolerance in differences
    )


def real_value(node: Node) -> tuple[Value, Value] | None:
    """(value, error bound) of a constant real expression to about `BASE_DIGITS` digits; None if it is none."""
    if symbols(node) - CONSTANTS:
        return None
    context = _precise_context()
    context.dps = BASE_DIGITS
    evaluation = _Evaluation(context, {})
    value = evaluation.value_or_none(node)
    if value is None or context.im(value) != 0:
        return None
    error = evaluation.largest * context.mpf(10) ** -(BASE_DIGITS // 2)
    is_known = error < max(1, abs(value)) * context.mpf(10) ** -(BASE_DIGITS // 4)
    return (context.re(value), error) if is_known else None


def _equal_at(first: Node, second: Node, point: dict[str, Fraction], is_complex: bool) -> tuple[bool, bool] | None:
    """(equal, both real) at a point; None where one has no finite value, or, unless `is_complex`, only one is real."""
    found = _precise_values(first, second, point)
    if found is None:
        return None
    values, tolerance, evaluation = found
    context = evaluation.context
    is_real = all(abs(context.im(v)) <= tolerance for v in values)
    one_real = any(abs(context.im(v)) <= tolerance for v in values)
    if one_real and not is_real and point and not is_complex:
        return None  # one is not defined there among the reals
    if point and evaluation.left_reals:
        is_real = False  # sqrt(x) sqrt(y) has no value among the reals where x and y are negative
    return abs(values[0] - values[1]) <= tolerance, is_real


def _precise_values(
    first: Node, second: Node, point: dict[str, Fraction]
) -> "tuple[list[Value], Value, _Evaluation] | None":
    """Both values, the difference that rounding may make between them, and how they were evaluated.

    None where one of them has no finite value.
    """
    try:
        evaluation, values = _evaluated(first, second, point)
    except TooCostly:
        if point:
            return None
        raise
    if values[0] is None or values[1] is None:
        return None
    context = evaluation.context
    return values, evaluation.largest * context.mpf(10) ** -(context.dps * 8 // 10), evaluation


def _evaluated(first: Node, second: Node, point: dict[str, Fraction]) -> "tuple[_Evaluation, list[Value | None]]":
    """Both values, with as many digits as their evaluation turns out to need."""
    context = _precise_context()
    digits = BASE_DIGITS
    while digits <= MAX_DIGITS:
        context.dps = digits
        evaluation = _Evaluation(context, point)
        values = [evaluation.value_or_none(node) for node in (first, second)]
        needed = evaluation.digits_needed()
        if needed <= digits:
            return evaluation, values
        digits = needed
    raise TooCostly("too many digits needed")


def _ratio_at(first: Node, second: Node, point: dict[str, Fraction]) -> tuple[Value, Value] | None:
    """first / second at a point and its relative error; None where either has no value or the second vanishes."""
    found = _precise_values(first, second, point)
    if found is None:
        return None
    values, tolerance, evaluation = found
    if abs(values[1]) <= tolerance:
        return None
    return values[0] / values[1], evaluation.context.mpf(10) ** -(evaluation.context.dps * 35 // 100)


_local = threading.local()


def _precise_context() -> Any:
    """This thread's multi-precision context: precision is a state of the context, so threads must not share one."""
    if not hasattr(_local, "context"):
        from mpmath.ctx_mp import MPContext

        _local.context = MPContext()
    return _local.context


class _Undefined(ArithmeticError):
    """An operation has no finite value here."""


class _Evaluation:
    """Evaluates trees at one point and keeps book of the sizes that occur."""

    def __init__(self, context: Any, point: dict[str, Fraction]) -> None:
        self.context = context
        self.point = point
        self.largest = context.mpf(1)
        self.smallest = context.mpf(1)
        self.limit = context.mpf(10) ** MAX_MAGNITUDE
        self.least_size = context.mpf(10) ** -MAX_DIGITS
        self.literal_digits = 0
        self.left_reals = False

    def digits_needed(self) -> int:
        """To tell two results apart, given the sizes of everything on the way and the digits that are spelled out."""
        span = int(self.context.mag(self.largest) - self.context.mag(self.smallest)) * 3 // 10
        return BASE_DIGITS + 3 * span + 2 * self.literal_digits

    def value_or_none(self, node: Node) -> Value | None:
        """The finite value of a tree, or None if it has none here (a pole, a branch point, an overflow)."""
        try:
            return self.value(node)
        except (ArithmeticError, ValueError):  # mpmath's ways to say that it is a pole or past its range
            return None

    def value(self, node: Node) -> Value:
        match node:
            case Number():
                self.literal_digits = max(self.literal_digits, len(str(node.value.denominator)))
                result = self.fraction(node.value)
            case Symbol():
                result = self.symbol(node.name)
            case Apply(operator="^"):
                result = self.power(*node.arguments)
            case Apply(operator="call", arguments=(Symbol(name=name), *arguments)):
                result = self.unknown(name, [self.value(a) for a in arguments])
            case Apply():
                arguments = [self.value(a) for a in node.arguments]
                result = self.apply(node.operator, arguments)
                if node.operator not in _NEVER_CANCEL and abs(result) < self.least(node.operator, arguments):
                    result = self.context.mpf(0)  # it cannot be told from 0, so nothing may be divided by it
            case _:
                raise Unreadable("not a scalar")
        self.left_reals |= bool(self.context.im(result))
        size = abs(result)
        if not size < self.context.inf:
            raise _Undefined
        if size > self.largest:
            if size > self.limit:
                raise TooCostly("value too large")
            self.largest = size
        elif 0 < size < self.smallest:
            if size < self.least_size:
                raise TooCostly("value too small")
            self.smallest = size
        return result

    def least(self, operator: str, arguments: list[Value]) -> Value:
        """What a result would be above that is not 0 but for rounding: sin(pi), or 1 - 1."""
        scale = max((abs(argument) for argument in arguments), default=1)
        return (scale if operator == "+" else max(scale, 1)) * self.context.mpf(10) ** -(self.context.dps * 8 // 10)

    def fraction(self, value: Fraction) -> Value:
        return self.context.mpf(value.numerator) / self.context.mpf(value.denominator)

    def symbol(self, name: str) -> Value:
        match name:
            case "pi":
                return +self.context.pi
            case "e":
                return +self.context.e
            case "i":
                return self.context.mpc(0, 1)
        return self.fraction(self.point[name])

    def unknown(self, name: str, arguments: list[Value]) -> Value:
        """A function of which only the name is known: any that has no property by which two answers could agree."""
        seed = zlib.crc32(name.encode()) % 9973
        return self.context.fsum(
            self.context.sin(value * (seed + k) / 97 + seed) for k, value in enumerate(arguments, 1)
        )

    def apply(self, operator: str, arguments: list[Value]) -> Value:
        if operator in _STEEP and any(self.is_far(operator, argument) for argument in arguments):
            raise TooCostly("argument too large")
        function, arity = _FUNCTIONS.get(operator, (None, 0))
        if function is None or (arity and len(arguments) not in (arity, arity + (operator == "log"))):
            raise Unreadable(f"{operator} of {len(arguments)} arguments")
        return function(self.context, *arguments)

    def is_far(self, operator: str, argument: Value) -> bool:
        """Whether a function grows or falls there so much that its value has thousands of digits."""
        along = self.context.im(argument) if operator in _PERIODIC else self.context.re(argument)
        return abs(along) > MAX_STEEP

    def power(self, base_node: Node, exponent_node: Node) -> Value:
        base, exponent = self.value(base_node), self.value(exponent_node)
        try:
            exact = rational(exponent_node)
        except TooCostly:
            exact = None
        if base == 0:
            return base if exponent.real > 0 else 1 / base
        if abs(exponent) > MAX_EXPONENT or abs(exponent * self.context.log(abs(base))) > MAX_MAGNITUDE * 4:
            raise TooCostly("power too large")
        if exact is not None and exact.denominator == 1:
            return base**exact.numerator
        if exact is not None and exact.denominator % 2 and self.context.im(base) == 0 and self.context.re(base) < 0:
            return (-1) ** exact.numerator * abs(base) ** exponent
        return self.context.power(base, exponent)


def _root(context: Any, radicand: Value, degree: Value) -> Value:
    if degree == 2:
        return context.sqrt(radicand)
    negative = not context.im(radicand) and context.re(radicand) < 0
    if negative and not context.im(degree) and context.re(degree) % 2 == 1:
        return -(abs(radicand) ** (1 / degree))
    return context.power(radicand, 1 / degree)


def _product(context: Any, *factors: Value) -> Value:
    result = context.mpf(1)
    for factor in factors:
        result *= factor
    return result


def _log(context: Any, argument: Value, base: Value | None = None) -> Value:
    return context.log(argument) if base is None else context.log(argument) / context.log(base)


def _factorial(context: Any, value: Value) -> Value:
    if value == context.floor(context.re(value)) and 0 <= context.re(value) <= MAX_FACTORIAL:
        return context.mpf(math.factorial(int(context.re(value))))
    if abs(value) > 200 or context.prec > MAX_GAMMA_BITS:
        raise TooCostly("factorial too large")
    return context.gamma(value + 1)


def _binomial(context: Any, n: Value, k: Value) -> Value:
    if all(value == context.floor(context.re(value)) and 0 <= context.re(value) <= MAX_FACTORIAL for value in (n, k)):
        return context.mpf(math.comb(int(context.re(n)), int(context.re(k))))
    if abs(n) > 1000 or abs(k) > 1000 or context.prec > MAX_GAMMA_BITS:
        raise TooCostly("binomial too large")
    return context.binomial(n, k)


def _reals(context: Any, values: tuple[Value, ...]) -> list[Value]:
    """The values, which must be real where they are put in order."""
    if any(context.im(value) for value in values):
        raise _Undefined
    return [context.re(value) for value in values]


def _snapped(context: Any, value: Value) -> Value:
    """A real value, or the integer that it cannot be told from: floor(log_10 1000) is 3."""
    (real,) = _reals(context, (value,))
    nearest = context.floor(real + 0.5)
    if abs(real - nearest) > context.mpf(2) ** (-context.prec * 8 // 10) * max(1, abs(real)):
        return real
    return nearest


def _named(name: str) -> Callable[..., Value]:
    return lambda context, value: getattr(context, name)(value)


_PERIODIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_STEEP = _PERIODIC | {"exp", "sinh", "cosh", "tanh", "coth", "sech", "csch"}
_NEVER_CANCEL = frozenset(("*", "root", "abs", "deg", "exp", "!", "binom"))
_SAME_NAME = (
    "exp",
    *("sin", "cos", "tan", "cot", "sec", "csc"),
    *("sinh", "cosh", "tanh", "coth", "sech", "csch"),
)
# Operator: (function of the context and the values, number of arguments or 0 for any).
_FUNCTIONS: dict[str, tuple[Callable[..., Value], int]] = {
    "+": (lambda context, *terms: context.fsum(terms), 0),
    "*": (_product, 0),
    "root": (_root, 2),
    "abs": (lambda context, value: abs(value), 1),
    "deg": (lambda context, value: value * context.pi / 180, 1),
    "!": (_factorial, 1),
    "binom": (_binomial, 2),
    "ln": (_log, 1),
    "log": (_log, 1),
    "max": (lambda context, *values: max(_reals(context, values)), 0),
    "min": (lambda context, *values: min(_reals(context, values)), 0),
    "floor": (lambda context, value: context.floor(_snapped(context, value)), 1),
    "ceil": (lambda context, value: context.ceil(_snapped(context, value)), 1),
    **{f"arc{name}": (_named(f"a{name}"), 1) for name in ("sinh", "cosh", "tanh")},
    **{
        name: (_named("a" + name.removeprefix("arc") if name.startswith("arc") else name), 1)
        for name in (*_SAME_NAME, *(f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")))
    },
}
