"""The tests of a code problem in the forms in which datasets have them, as ours."""

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping
from typing import Any

_MAX_BYTES = 1 << 30
"""Of decompressed tests; LiveCodeBench packs up to 90 MB for a problem."""
_CALLS = "calls of a function in the form of APPS"


class UnreadableTests(ValueError):
    """They are in no form that is known."""


def read_tests(value: Any, fn_name: str | None = None) -> list[dict[str, str]]:
    """`{input, output, testtype}` of every test.

    Args:
        value: as the column has it: a list of `{input, output}` (LiveCodeBench, DeepCoder), `{"inputs": [...],
            "outputs": [...]}` (APPS, TACO), `{"input": [...], "output": [...]}` (CodeContests); each also as JSON, and
            as LiveCodeBench packs its private ones.
        fn_name: of the function that is called, where the tests do not read standard input.

    Raises:
        UnreadableTests: it is something else; or calls in the form of APPS, of whose outputs nobody can tell whether a
            list is the value or holds it.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = _unpacked(value)
    kind = "stdin" if fn_name is None else "functional"
    if isinstance(value, Mapping):
        for inputs, outputs in (("inputs", "outputs"), ("input", "output")):
            if inputs in value and outputs in value:
                if fn_name is not None or value.get("fn_name"):
                    raise UnreadableTests(_CALLS)
                return _paired(value[inputs], value[outputs])
        raise UnreadableTests(f"an object with {sorted(map(str, value))}")
    if not isinstance(value, list):
        raise UnreadableTests(f"a {type(value).__name__}")
    tests = []
    for test in value:
        if not isinstance(test, Mapping) or not {"input", "output"} <= test.keys():
            raise UnreadableTests("a test that is no object with input and output")
        if fn_name is None and (test.get("fn_name") or test.get("type") == "function_call"):
            raise UnreadableTests(_CALLS)
        own_kind = test.get("testtype") or kind
        tests.append({"input": _text(test["input"]), "output": _text(test["output"]), "testtype": str(own_kind)})
    return tests


def _paired(inputs: Any, outputs: Any) -> list[dict[str, str]]:
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise UnreadableTests("inputs and outputs that are no lists of the same length")
    return [{"input": _text(i), "output": _text(o), "testtype": "stdin"} for i, o in zip(inputs, outputs, strict=True)]


def _text(value: Any) -> str:
    """A test's text; some have it as a list of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise UnreadableTests(f"a test of a {type(value).__name__}")
    return value


def _unpacked(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        expand = zlib.decompressobj()
        data = expand.decompress(base64.b64decode(text, validate=True), _MAX_BYTES)
        if expand.unconsumed_tail:
            raise UnreadableTests(f"more than {_MAX_BYTES >> 20} MiB of tests")
        return json.loads(_pickled_text(data))
    except (ValueError, RecursionError, zlib.error) as error:
        raise UnreadableTests(f"a text that is neither JSON nor packed ({error})") from error


def _pickled_text(data: bytes) -> str:
    """The one text in a pickle, found by taking it apart: to load a stranger's pickle is to run it."""
    texts = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    if len(texts) != 1:
        raise ValueError(f"a pickle with {len(texts)} texts")
    return texts[0]
