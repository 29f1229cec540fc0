"""Malformed inputs, drawn from valid ones; and what every reader owes them: to take them, or to say one line."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from tally import total

from converters.errors import ConversionError
from megatron_rl.errors import InputError

WILD: list[Any] = [
    *(None, True, False, 0, -1, 7, 2**31, 2**63, -(2**64), 10**400, 0.5, -1e308),
    *(float("nan"), float("inf"), float("-inf"), ".nan", "1e999"),
    *("", " ", "nonsense", "\ud800", "\ufeff", "a\nb", "a\u2028b", "\0", "x" * 5000, "../../etc", "/dev/null", "."),
    *("${", "${nothing}", "${oc.env:HOME}", "???", "{}", "[", "&a *a", "!!binary x"),
    *([], {}, [[[]]], [None], {"a": None}, {"": 1}, {"a\nb": 1}, ["nonsense"], {"nonsense": ["nonsense"]}),
]
"""Values that a reader may not expect."""
_NOISE = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"{", b"]", b'"', b"NaN", b"\\ud800", b"9" * 5000, b": ")


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of a property over `examples` inputs, the same ones in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Reader:
    """Counts what a reader took and what it refused, and checks how it refused."""

    def __init__(self) -> None:
        self.taken = self.refused = 0

    @contextmanager
    def reads(self, *names: object) -> Iterator[None]:
        """The block reads one malformed input: it ends well, or with one line that has at least one of `names`."""
        total["malformed inputs"] += 1
        try:
            yield
        except (InputError, ConversionError) as error:
            check_line(str(error), *names)
            self.refused += 1
            total["refused"] += 1
        else:
            self.taken += 1


def check_line(message: str, *names: object) -> None:
    """See that `message` is one line, no longer than a person reads, with at least one of `names`."""
    assert len(message.splitlines()) == 1, f"not one line: {message!r}"
    assert len(message) < 2000, f"{len(message)} characters: {message[:200]!r}"
    assert any(str(name) in message for name in names), f"names no file or key: {message!r}"


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three of its parts gone, doubled, renamed, or of another kind."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(st.sampled_from(WILD))
        container, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["drop", "wild", "wild", "wrap", "rename", "text"])):
            case "drop":
                del container[key]
            case "wild":
                container[key] = copy.deepcopy(draw(st.sampled_from(WILD)))
            case "wrap":
                container[key] = [container[key], container[key]]
            case "text":
                container[key] = draw(st.text(max_size=8))
            case "rename" if isinstance(container, dict):
                container[draw(st.sampled_from([f"{key}s", "", "a.b", "\ud800", "x" * 300]))] = container.pop(key)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut short, overwritten, in another encoding, or replaced."""
    at = draw(st.integers(0, len(content)))
    noise = draw(st.sampled_from(_NOISE))
    match draw(st.sampled_from(["cut", "overwrite", "insert", "encode", "other", "bytes", "deep"])):
        case "cut":
            return content[:at]
        case "overwrite":
            return content[:at] + noise + content[at + len(noise) :]
        case "insert":
            return content[:at] + noise + content[at:]
        case "encode":
            encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "utf-7", "cp500"]))
            return content.decode("utf-8", "replace").encode(encoding, "replace")
        case "other":
            return draw(
                st.sampled_from([b"", b"\n", b"null", b"[]", b"{}", b'""', b"0", content + content, b"\0" * 99])
            )
        case "bytes":
            return draw(st.binary(max_size=64))
        case _:
            return draw(st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"[" * 500 + b"]" * 500]))


def malformed_json(document: Any) -> st.SearchStrategy[bytes]:
    """JSON (and YAML) of a mutated document, or damaged bytes of it."""
    text = json.dumps(document, indent=1).encode()
    return st.one_of(mutated(document).map(lambda value: json.dumps(value).encode()), damaged(text))


def put(path: Path, content: bytes | None) -> None:
    """Write `content` in place of whatever is there; None: a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
