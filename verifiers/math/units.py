"""Units of measure: which words are units, and one spelling for each."""

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
    "unit": "units",
    "percent": "",
    "/": "per",
    "square": "sq",
    "cubic": "",
}
_CANONICAL = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
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


def canonical_unit(words: str, exponent: int = 1) -> str | None:
    """One spelling for a unit, such as `cm^2` for "square centimeters"; None if a word is no known unit.

    "units" says nothing, whatever its power, and so does no word at all: both are None.
    """
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
