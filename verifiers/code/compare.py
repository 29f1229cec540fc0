"""Equality of a program's output with the expected one, on bytes, in the judge's process; and what a test must be.

Standard output is compared as LiveCodeBench does: surrounding white space off the whole and off each
line, the same number of lines, each equal as text or, token by token, as exact decimal numbers (`1.50`
equals `1.5`; there is no tolerance, and case and order count).

A function's value arrives as JSON and is compared with `==`, so `1`, `1.0` and `True` are equal, floats
are exact, and a tuple is a list at any depth (JSON has no tuples).

The bytes come from untrusted programs: no work here grows with them once they are clearly too long.
"""

import json
import warnings
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from verifiers.code.run import compiled

TEST_TYPES = ("stdin", "functional", "check")
# The widest gap between two JSON texts of equal numbers: 1e308 against its 309 digits.
_FRAME_FACTOR = 80
_FRAME_SLACK = 4096
_INT_DIGITS = 4000  # below what int() refuses; longer numbers are compared as exact decimals


def same_output(expected: str, actual: bytes) -> bool:
    """Whether what a program printed (`actual`) is the expected output. Never raises."""
    want = expected.strip()
    got = actual.decode("utf-8", "replace").strip()
    if want == got:
        return True
    if want.count("\n") != got.count("\n"):  # before splitting: a flood of lines costs no memory
        return False
    return all(_same_line(w.strip(), g.strip()) for w, g in zip(want.split("\n"), got.split("\n"), strict=True))


def _same_line(want: str, got: str) -> bool:
    if want == got:
        return True
    try:
        expected = [Decimal(token) for token in want.split()]
        return expected == [Decimal(token) for token in got.split()]
    except InvalidOperation:  # not a number, or a signalling NaN
        return False


def parse_value(text: str) -> object:
    """The JSON value in `text`; integers of any length are exact.

    Raises:
        ValueError: `text` is not one JSON value.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def check_test(test: Mapping[str, str]) -> None:
    """See that a functional test is one JSON value per line of its input, and one as its output, and a check Python.

    Raises:
        ValueError: it is not.
    """
    match test["testtype"]:
        case "functional":
            for text in [*filter(str.strip, test["input"].split("\n")), test["output"]]:
                try:
                    parse_value(text)
                except ValueError as error:
                    raise ValueError(f"{text!r:.40} is not JSON: {error}") from error
        case "check":
            with warnings.catch_warnings(action="ignore"):
                code = compiled(test["input"], "check")
            if isinstance(code, str):
                raise ValueError(f"its input is not Python: {code}")


def _parse_int(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _INT_DIGITS else Decimal(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_int)


def same_value(expected: str, actual: bytes) -> bool:
    """Whether the JSON bytes that a function's value was written as equal the JSON text `expected`.

    Raises:
        ValueError: `expected` is not JSON (the test is broken).
    """
    want = parse_value(expected)
    if len(actual) > _FRAME_FACTOR * len(expected) + _FRAME_SLACK:
        return False
    try:
        return bool(want == parse_value(actual.decode("utf-8")))
    except (ValueError, RecursionError):
        return False
