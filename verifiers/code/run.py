"""Run one program in the process that was forked for one test. Everything here is within its reach.

A stdin program sees what `python3 main.py` would: module `__main__`, descriptors 0, 1 and 2, and the ends of
a normal interpreter (threads joined, exit handlers run, buffers flushed). A functional program sees, as in
LiveCodeBench, the names of the usual contest modules; its own name is not `__main__`.
"""

import atexit
import builtins
import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import types
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

# As in LiveCodeBench: all public names of these (later ones win), then the built-ins, then the modules' own.
_STAR_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_NAMED_MODULES = _STAR_MODULES[:16]
# Imported once per program that names them, instead of at its every test. Not by the server: a fork, and the end of
# its child, take longer with every megabyte that it has touched.
_IF_NAMED = frozenset(
    (
        *("networkx", "numpy", "pandas", "scipy", "sympy"),
        *("abc", "argparse", "array", "asyncio", "atexit", "base64", "calendar", "cmath", "codecs"),
        *("contextlib", "csv", "dataclasses", "decimal", "difflib"),
        *("enum", "fileinput", "fractions", "gc", "graphlib", "hashlib", "inspect", "locale", "logging"),
        *("mmap", "multiprocessing", "numbers", "os", "pathlib", "pickle", "platform", "pprint", "queue", "resource"),
        *("secrets", "select", "selectors", "shutil", "signal", "struct", "subprocess", "tempfile", "textwrap"),
        *("threading", "time", "timeit", "traceback", "tracemalloc", "types", "unicodedata", "warnings", "weakref"),
        *("zlib", "zoneinfo"),
    )
)
_LOADED_WITH = {
    "asyncio": "concurrent.futures.thread",
    "concurrent.futures": "concurrent.futures.thread",
    "strptime": "_strptime",
}
_ALWAYS = (*_STAR_MODULES, "encodings.ascii", "encodings.latin_1")
_INT_DIGITS = 50_000  # LiveCodeBench's limit; CPython's own is 4,300
_FUNCTIONAL_RECURSION = 50_000  # LiveCodeBench's limit
_BROKEN_FLUSH = 120  # CPython's exit status when standard output cannot be flushed

Namespace = dict[str, Any]


def prepare() -> Namespace:
    """Import what most programs need and return the names that functional programs start with."""
    for name in _ALWAYS:
        importlib.import_module(name)
    names: Namespace = {}
    for name in _STAR_MODULES:
        public = vars(sys.modules[name])
        listed = public.get("__all__", [key for key in public if not key.startswith("_")])
        names.update((key, public[key]) for key in listed)
    names.update((name, sys.modules[name]) for name in _NAMED_MODULES)
    sys.set_int_max_str_digits(_INT_DIGITS)
    sys.argv = ["main.py"]
    return names


def preload(code: types.CodeType) -> None:
    """Import the well-known modules that `code` names, where they are installed."""
    names = set(_names(code))
    for name in (*_IF_NAMED & names, *(module for word, module in _LOADED_WITH.items() if word in names)):
        with contextlib.suppress(Exception):  # the program will find out itself
            importlib.import_module(name)
    gc.freeze()


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names, attributes and modules that `code` uses, functions and classes in it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def run_stdin(code: types.CodeType) -> NoReturn:
    """Run `code` as the main program on descriptors 0, 1 and 2, then exit with its status."""
    module = _module("__main__", {})
    status = 0
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        status = _exit_status(error)
    os._exit(_shut_down(module) or status)


def run_function(code: types.CodeType, names: Namespace, fn_name: str, text: str, result: int) -> NoReturn:
    """Call `fn_name` with the JSON values in `text` (one a line) and write its value to descriptor `result`.

    The frame is `=` and the value as JSON, or `!` if it has no JSON form, and a newline. Exit status 1 without
    a frame if the program or the call raises.
    """
    sys.setrecursionlimit(_FUNCTIONAL_RECURSION)
    dumps, write = json.dumps, os.write
    try:
        arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
        module = _module("solution", names)
        exec(code, module.__dict__)
        value = _function(module, fn_name)(*arguments)
        try:
            frame = b"=" + dumps(value, default=_plain).encode() + b"\n"
        except (AttributeError, StopIteration, TypeError, ValueError):
            frame = b"!\n"
        while frame:
            frame = frame[write(result, frame) :]
    except BaseException as error:
        _exit_status(error)
        _flush()
        os._exit(1)
    os._exit(0)


def _plain(value: Any) -> Any:
    """A number that `json` does not know (numpy's, a fraction, a decimal) as an equal one that it does."""
    if isinstance(value, Fraction | Decimal):
        return next(number for number in (int(value), float(value)) if number == value)
    return value.item()


def _module(name: str, names: Namespace) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(names, __name__=name, __file__=sys.argv[0], __builtins__=builtins)
    sys.modules[name] = module
    return module


def _function(module: types.ModuleType, fn_name: str) -> Any:
    solution = module.__dict__.get("Solution")
    if isinstance(solution, type) and hasattr(solution, fn_name):
        return getattr(solution(), fn_name)
    return getattr(module, fn_name)


def _exit_status(error: BaseException) -> int:
    """The status that Python exits with after `error`, which is reported on standard error as Python would."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        os.write(2, f"{error.code}\n".encode("utf-8", "replace"))
        return 1
    trace = error.__traceback__
    sys.excepthook(type(error), error, trace.tb_next if trace else None)
    return 1


def _shut_down(module: types.ModuleType) -> int:
    """What the interpreter does at its end, in its order; non-zero if output was lost."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    status = _flush()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    gc.collect()  # before and after, as CPython does: it puts files ahead of the descriptors that they write to
    for name in list(module.__dict__):  # files left open are flushed as their last reference goes
        if name != "__builtins__":
            module.__dict__[name] = None
    gc.collect()
    return _flush() or status  # destructors may have printed


def _flush() -> int:
    status = 0
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:  # the program's own stream, or a descriptor it closed
            status = _BROKEN_FLUSH
    return status
