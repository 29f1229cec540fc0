"""The code verifier's two pure parts: finding the program in a response, comparing outputs."""

import time

import pytest

from verifiers.code import extract_program
from verifiers.code.compare import same_output, same_value

# --- extraction -----------------------------------------------------------------------------------------------------

EXTRACTIONS = {
    "one block": ("</think>\n```python\nx\n```", "x"),
    "no thinking end": ("```python\nx\n```", None),
    "only in thinking": ("```python\nx\n```\n</think>\nno", None),
    "after the last thinking end": ("</think>```python\nx\n```</think>\n```python\ny\n```", "y"),
    "last block": ("</think>\n```python\nx\n```\n```python\ny\n```", "y"),
    "sample output behind": ("</think>\n```python\nx\n```\nprints\n```\n6\n```", "x"),
    "sample input before": ("</think>\n```\n6\n```\n```python\nx\n```", "x"),
    "py": ("</think>\n```py\nx\n```", "x"),
    "Python3": ("</think>\n```Python3\nx\n```", "x"),
    "attributes": ("</think>\n```python title=a\nx\n```", "x"),
    "space": ("</think>\n``` python\nx\n```", "x"),
    "no language": ("</think>\n```\nx\n```", None),
    "other language": ("</think>\n```cpp\nx\n```", None),
    "pythonic is another language": ("</think>\n```pythonic\nx\n```", None),
    "unclosed": ("</think>\n```python\nx\n", None),
    "unclosed after a closed one": ("</think>\n```python\nx\n```\n```python\ny", "x"),
    "opened twice": ("</think>\n```python\nx\n```python\ny\n```", "y"),
    "after prose": ("</think>\nSolution: ```python\nx\n```", "x"),
    "indented": ("</think>\n1. so\n   ```python\n   if x:\n       y\n  z\n   ```", "if x:\n    y\nz"),
    "indentation kept": ("</think>\n```python\n  x\n```", "  x"),
    "crlf": ("</think>\r\n```python\r\nx\r\ny\r\n```\r\n", "x\ny"),
    "longer fence": ("</think>\n````python\nx\n```\ny\n````", "x\n```\ny"),
    "backticks in code": ("</think>\n```python\ns = '```'\nx\n```", "s = '```'\nx"),
    "empty block": ("</think>\n```python\n```", ""),
    "empty": ("", None),
}


@pytest.mark.parametrize("name", EXTRACTIONS)
def test_extract_program(name: str) -> None:
    response, expected = EXTRACTIONS[name]
    assert extract_program(response) == expected


@pytest.mark.parametrize("piece", ["`", "```", "```python\n", "```py", "</think>", " ", "\n```\n", " ```python x"])
def test_extraction_takes_linear_time(piece: str) -> None:
    start = time.monotonic()
    extract_program("</think>" + piece * (2_000_000 // len(piece)))
    assert time.monotonic() - start < 3


# --- comparison -----------------------------------------------------------------------------------------------------

OUTPUTS = [
    ("6", b"6\n", True),
    ("6\n", b" 6 \r\n\n", True),
    ("1 2\n3", b"1 2 \n 3", True),
    ("1.5 2", b"1.50 2.0", True),
    ("100", b"1e2", True),
    ("0.1", b"0.10000001", False),
    ("1 2", b"2 1", False),
    ("1  2", b"1 2", True),  # both are numbers
    ("a  b", b"a b", False),
    ("YES", b"yes", False),
    ("1\n2", b"1 2", False),
    ("1\n\n2", b"1\n2", False),
    ("", b"", True),
    ("", b"x", False),
    ("x", b"", False),
    ("nan", b"NaN", False),
    ("1", b"sNaN", False),
    ("é", "é".encode(), True),
    ("1", b"\xff\xfe", False),
    ("1", b"1\x00", False),
]


@pytest.mark.parametrize(("expected", "actual", "equal"), OUTPUTS)
def test_same_output(expected: str, actual: bytes, equal: bool) -> None:
    assert same_output(expected, actual) is equal


VALUES = [
    ("6", b"6", True),
    ("[1, 2]", b"[1,2]", True),
    ("1", b"1.0", True),
    ("1", b"true", True),
    ("0.3", b"0.30000000000000004", False),
    ("[1, 2]", b"[2, 1]", False),
    ("null", b"null", True),
    ("0", b"null", False),
    ('"a"', b'"a"', True),
    ('"1"', b"1", False),
    ("NaN", b"NaN", False),
    ("9" * 6000, b"9" * 6000, True),
    ("9" * 6000, b"9" * 5999 + b"8", False),
    ("1e300", str(int(1e300)).encode(), True),
    ("1", b"[" * 100_000, False),
    ("1", b"1 1", False),
    ("1", b"\xff", False),
]


@pytest.mark.parametrize(("expected", "actual", "equal"), VALUES)
def test_same_value(expected: str, actual: bytes, equal: bool) -> None:
    assert same_value(expected, actual) is equal
