"""Units of measure: which words are units, one spelling for each, and how large they are."""

from fractions import Fraction

from verifiers.math.nodes import Unreadable

MAX_POWER = 9

_SPELLINGS = {
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "mg": "milligram milligrams",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "deg": "degree degrees",
    "rad": "radian radians",
    "dollar": "dollars usd",
    "cent": "cents",
    "euro": "euros",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "gallon": "gallons gal",
    "celsius": "°c",
    "fahrenheit": "°f",
    "newton": "newtons",
    "joule": "joules",
    "watt": "watts",
    "volt": "volts",
    "kelvin": "kelvins",
    "ampere": "amperes amp amps",
    "coulomb": "coulombs",
    "farad": "farads",
    "henry": "henries",
    "tesla": "teslas",
    "ohm": "ohms Ω",
    "unit": "units",
    "percent": "",
    "/": "per",
    "square": "sq",
    "cubic": "",
}
_CANONICAL = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
# Unit: (the one that all of its kind are measured in, how many of it).
_IN_BASE = {
    "mm": ("m", Fraction(1, 1000)),
    "cm": ("m", Fraction(1, 100)),
    "km": ("m", Fraction(1000)),
    "in": ("m", Fraction(254, 10_000)),
    "ft": ("m", Fraction(3048, 10_000)),
    "yd": ("m", Fraction(9144, 10_000)),
    "mi": ("m", Fraction(1_609_344, 1000)),
    "mg": ("g", Fraction(1, 1000)),
    "kg": ("g", Fraction(1000)),
    "oz": ("lb", Fraction(1, 16)),
    "min": ("s", Fraction(60)),
    "h": ("s", Fraction(3600)),
    "day": ("s", Fraction(86_400)),
    "week": ("s", Fraction(604_800)),
    "cent": ("dollar", Fraction(1, 100)),
    "mL": ("L", Fraction(1, 1000)),
}
_SPEEDS = {"mph": "mi / h", "kph": "km / h", "kmh": "km / h"}
_POWERS = {"square": 2, "cubic": 3}
# Read as units only in \text{}: without it they are variables or function names.
_LETTERS_OR_NAMES = frozenset(("m", "g", "s", "h", "l", "L", "in", "min"))


def is_unit(word: str) -> bool:
    r"""Whether a word in `\text{}` is a known unit."""
    return word in _CANONICAL


def is_unit_word(word: str) -> bool:
    """Whether a bare word after a value is a unit (`5 cm`) rather than a product of variables (`5xy`)."""
    return (word in _CANONICAL or word in _SPEEDS) and word not in _LETTERS_OR_NAMES


def in_base(unit: str) -> tuple[str, Fraction]:
    """A canonical unit as (unit of the base, how many of it): `km / h` as (`m / s`, 5/18)."""
    names, factor, sign = [], Fraction(1), 1
    for part in unit.split():
        name, _, power = part.partition("^")
        base, size = _IN_BASE.get(name, (name, Fraction(1)))
        names.append(base + (f"^{power}" if power else ""))
        sign = -1 if part == "/" else sign
        factor *= size ** (sign * int(power or 1))
    return " ".join(names), factor


def canonical_unit(words: str, exponent: int = 1) -> str | None:
    """One spelling for a unit, such as `cm^2` for "square centimeters"; None if a word is no known unit.

    "units" says nothing, whatever its power, and so does no word at all: both are None.
    """
    if abs(exponent) > MAX_POWER:
        raise Unreadable("power of a unit")
    parts = []
    power = exponent
    for word in _SPEEDS.get(words, words).replace("/", " / ").replace(".", "").split():
        unit = _CANONICAL.get(word)
        if unit is None:
            return None
        if unit in _POWERS:
            power = _POWERS[unit]
        elif unit != "unit":
            parts.append(unit)
    if not parts:
        return None
    return " ".join(parts) + (f"^{power}" if power != 1 else "")
