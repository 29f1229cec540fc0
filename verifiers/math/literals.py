"""Number literals and mixed numbers to exact values."""

from fractions import Fraction

from verifiers.math.nodes import Node, Number, Unreadable

MAX_NUMBER_DIGITS = 2_000
MAX_POWER_OF_TEN = 500


def read_number(text: str) -> Number:
    """The exact value of an unsigned literal: `12`, `.5`, `0.1(6)` for a repeating decimal, `6.02e23`.

    Raises Unreadable for one with more digits or a larger exponent than an honest answer has.
    """
    if len(text) > MAX_NUMBER_DIGITS:
        raise Unreadable("too many digits")
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and (len(exponent) > 5 or abs(int(exponent)) > MAX_POWER_OF_TEN):
        raise Unreadable("exponent too large")
    mantissa, _, period = mantissa.rstrip(")").partition("(")
    whole, _, fraction = mantissa.partition(".")
    value = Fraction(int((whole + fraction) or "0"), 10 ** len(fraction))
    if period:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fraction))
    if exponent:
        value *= Fraction(10) ** int(exponent)
    return Number(value, 0 if period or exponent else len(fraction))


def mixed_number(whole: Node, numerator: Node, denominator: Node) -> Number | None:
    """1 4/5 as 9/5, if these are integers and the fraction is proper."""
    if not (isinstance(whole, Number) and isinstance(numerator, Number) and isinstance(denominator, Number)):
        return None
    if any(n.value.denominator != 1 for n in (whole, numerator, denominator)):
        return None
    if not 0 < numerator.value < denominator.value:
        return None
    return Number(whole.value + numerator.value / denominator.value)
