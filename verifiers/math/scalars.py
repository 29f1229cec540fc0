"""Equality of single values: units, exact rationals, rounding to a long decimal, many digits, then sympy."""

from collections.abc import Callable
from fractions import Fraction

from verifiers.math import numeric, symbolic
from verifiers.math.exact import rational
from verifiers.math.nodes import Apply, Node, Number, Numeral, Quantity, Unreadable, children, multiply, symbols
from verifiers.math.units import in_base

ROUNDED_DECIMALS = 4


def same_scalar(answer: Node, reference: Node) -> bool:
    """Whether two single values are equal. Raises Unreadable or TooCostly where that cannot be decided."""
    if isinstance(answer, Numeral) or isinstance(reference, Numeral):
        return _same_numeral(answer, reference)
    answer_unit, answer = _split_unit(answer)
    reference_unit, reference = _split_unit(reference)
    units = {answer_unit, reference_unit}
    if "deg" in units and units & {None, "rad"} and _same_angle(answer_unit, answer, reference):
        return True
    if answer_unit and reference_unit and answer_unit != reference_unit:
        (answer_unit, mine), (reference_unit, theirs) = in_base(answer_unit), in_base(reference_unit)
        if answer_unit != reference_unit:
            return False
        answer, reference = multiply([answer, Number(mine)]), multiply([reference, Number(theirs)])
    return _same_values(answer, reference)


def _same_angle(answer_unit: str | None, answer: Node, reference: Node) -> bool:
    r"""Whether one side in degrees is the other in radians: 60^\circ is \pi/3."""
    degrees, radians = (answer, reference) if answer_unit == "deg" else (reference, answer)
    return "pi" in symbols(radians) and _same_values(Apply("deg", (degrees,)), radians)


def _same_values(answer: Node, reference: Node) -> bool:
    for rung in _SCALAR_RUNGS:
        verdict = rung(answer, reference)
        if verdict is not None:
            return verdict
    # Numbers reject fast; where they agree sympy has the last word on rational functions, else the digits count.
    return numeric.identical(answer, reference) and symbolic.same_rational_function(answer, reference) is not False


def _same_numeral(answer: Node, reference: Node) -> bool:
    if isinstance(reference, Numeral) and isinstance(answer, Number):
        return reference.digits.isdigit() and answer.value == int(reference.digits)
    return answer == reference


def _split_unit(node: Node) -> tuple[str | None, Node]:
    """Unit and value; a sum has that of its terms. Raises Unreadable if they have units of several kinds."""
    match node:
        case Quantity():
            return node.unit, node.value
        case Apply(operator="deg"):
            return "deg", node.arguments[0]
        case Apply(operator="*", arguments=factors):
            degrees = [i for i, factor in enumerate(factors) if isinstance(factor, Apply) and factor.operator == "deg"]
            if len(degrees) != 1:
                return None, node
            return "deg", Apply("*", tuple(_split_unit(f)[1] if i in degrees else f for i, f in enumerate(factors)))
        case Apply(operator="+", arguments=terms):
            split = [_split_unit(term) for term in terms]
            units = {unit for (unit, value), term in zip(split, terms, strict=True) if value is not term}
            if not units:
                return None, node
            if units == {"deg"}:  # letters next to degrees count degrees
                return "deg", Apply("+", tuple(value for _, value in split))
            if any(value is term for (_, value), term in zip(split, terms, strict=True)):
                raise Unreadable("terms with and without a unit")
            if len(units) == 1:
                return units.pop(), Apply("+", tuple(value for _, value in split))
            bases = [in_base(unit) if unit else (None, Fraction(1)) for unit, _ in split]
            if len({base for base, _ in bases}) > 1:
                raise Unreadable("terms of different units")
            terms = tuple(multiply([value, Number(size)]) for (_, value), (_, size) in zip(split, bases, strict=True))
            return bases[0][0], Apply("+", terms)
        case _:
            return None, node


def _by_structure(answer: Node, reference: Node) -> bool | None:
    return True if answer == reference else None


def _by_rationals(answer: Node, reference: Node) -> bool | None:
    first = rational(answer)
    second = rational(reference)
    if second is None or first is None:
        return None
    return first == second or _rounds(Number(first), answer, reference)


def _by_rounding(answer: Node, reference: Node) -> bool | None:
    return _rounds(answer, answer, reference) or None


_SCALAR_RUNGS: tuple[Callable[[Node, Node], bool | None], ...] = (_by_structure, _by_rationals, _by_rounding)


def _rounds(value: Node, written: Node, reference: Node) -> bool:
    """Whether an exact value rounds to a reference that is a long decimal."""
    if not isinstance(reference, Number) or reference.decimals < ROUNDED_DECIMALS or _has_decimal(written):
        return False
    if len(str(abs(reference.value.numerator))) < ROUNDED_DECIMALS:
        return False
    evaluated = numeric.real_value(value)
    if evaluated is None:
        return False
    number, error = evaluated
    half_unit = Fraction(1, 2 * 10**reference.decimals)
    distance = abs(number - number.context.mpf(reference.value.numerator) / reference.value.denominator)
    return distance <= number.context.mpf(half_unit.numerator) / half_unit.denominator + error


def _has_decimal(node: Node) -> bool:
    if isinstance(node, Number):
        return node.decimals > 0
    return any(_has_decimal(child) for child in children(node))
