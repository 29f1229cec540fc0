"""Run a program on test after test, in the process that was forked for it. Everything here is within its reach.

A stdin program sees what `python3 main.py` would: module `__main__`, descriptors 0, 1 and 2, and the ends of
a normal interpreter (threads joined, exit handlers run, buffers flushed). A functional program sees, as in
LiveCodeBench, the names of the usual contest modules; its own name is not `__main__`. One that is checked sees what the
starter code before it defines, and the check after it what both have defined.

Each test starts with the module, the streams and the settings of a new process. What else a program changed meets
the next test, unless it shows (`_is_spent`); so the judge blames a program only for a test that had a new process.
"""

import _thread
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
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from typing import Any, NoReturn

from verifiers.code import protocol
from verifiers.code.values import returning_data

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
        *("abc", "argparse", "array", "ast", "asyncio", "atexit", "base64", "calendar", "cmath", "codecs"),
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
_RECURSION = sys.getrecursionlimit()
CONTROL, _INPUT, _OUTPUT, _ERRORS, _NULL = range(3, 8)  # the descriptors of a program's process
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
    sys.set_int_max_str_digits(_INT_DIGITS)  # for the compiler
    return names


def compiled(text: str, name: str) -> types.CodeType | str:
    """The compiled source, or what is wrong with it."""
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"


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


def run_tests(code: types.CodeType, names: Namespace, fn_name: str | None, scratch: str) -> NoReturn:
    """Run one test, or some that call `fn_name`, for each order, answer how that ended, and exit when orders end.

    A check takes two orders: at the first the program runs, and finds nothing of the check yet. An answer is two
    numbers: the exit status that Python would have had, and 1 if the next test needs a new process.
    """
    read, write = os.read, os.write  # programs may put others in their place
    built_in = dict(vars(builtins))
    write(CONTROL, protocol.READY)
    while order := read(CONTROL, 1):
        if order == protocol.FUNCTION:
            _connect(_NULL, _NULL)
            status = spent = 0
            for text in _input().split(protocol.SEPARATOR):
                _renew(scratch, _FUNCTIONAL_RECURSION)
                status = _run_function(code, names, fn_name or "", text)
                spent = _is_spent(scratch, built_in)
                if status or spent:
                    break
        elif order == protocol.LOAD:
            _connect(_NULL, _NULL)
            _renew(scratch, _FUNCTIONAL_RECURSION)
            loaded = _Loaded(fn_name)
            status, spent = loaded.run(code), 0
        elif order == protocol.CHECK:
            status = loaded.check()
            spent = _is_spent(scratch, built_in)
        else:
            _connect(_INPUT, _OUTPUT)
            _renew(scratch, _RECURSION)
            status = _run_stdin(code)
            spent = _is_spent(scratch, built_in)
        try:
            write(CONTROL, b"%d %d" % (status, spent))
        except OSError:  # closed by the program
            os._exit(status)
    os._exit(0)


def _input() -> str:
    return protocol.read_all(_INPUT, os.fstat(_INPUT).st_size).decode("utf-8", "surrogatepass")


def _connect(source: int, sink: int) -> None:
    """Standard streams as in a new process, at the start of their files."""
    for new, old in enumerate((source, sink, _ERRORS)):
        os.dup2(old, new)
    for fd in (_INPUT, _OUTPUT, _ERRORS):
        os.lseek(fd, 0, os.SEEK_SET)
    sys.stdin = sys.__stdin__ = _stream(0, "r", "surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w", "surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w", "backslashreplace")  # type: ignore[misc]


def _renew(scratch: str, recursion: int) -> None:
    """Set as in a new process what a program is likely to have changed."""
    if "solution" in sys.modules:  # here, not when the collector finds the circles of its functions
        vars(sys.modules.pop("solution")).clear()
    sys.argv = ["main.py"]
    sys.excepthook = sys.__excepthook__
    sys.setrecursionlimit(recursion)
    sys.set_int_max_str_digits(_INT_DIGITS)
    threading.stack_size(0)
    gc.enable()
    os.chdir(scratch)


def _stream(fd: int, mode: str, errors: str) -> TextIOWrapper:
    """A standard stream as the interpreter makes it in UTF-8 mode when it is not a terminal."""
    raw = FileIO(fd, mode, closefd=False)
    raw.name = ("<stdin>", "<stdout>", "<stderr>")[fd]
    buffer = BufferedReader(raw) if mode == "r" else BufferedWriter(raw)
    stream = TextIOWrapper(buffer, "utf-8", errors, newline="\n", write_through=fd == 2)
    stream.mode = mode  # type: ignore[misc]
    return stream


def _is_spent(scratch: str, built_in: Namespace) -> bool:
    """Whether the test left something that the next one would meet."""
    return _thread._count() > 0 or os.listdir(scratch) != [] or vars(builtins) != built_in


def _run_stdin(code: types.CodeType) -> int:
    """Run `code` as the main program on descriptors 0, 1 and 2; the status that Python would exit with."""
    module = _module("__main__", {})
    status = 0
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        status = _exit_status(error)
    return _shut_down(module) or status


def _run_function(code: types.CodeType, names: Namespace, fn_name: str, text: str) -> int:
    """Call `fn_name` with the JSON values in `text` (one a line) and write its value to the output.

    The frame is `=` and the value as JSON, or `!` if it has no JSON form, and a newline. Status 1 and no frame if the
    program or the call raises.
    """
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
            frame = frame[write(_OUTPUT, frame) :]
    except BaseException as error:
        return _failed(error)
    return 0


def _failed(error: BaseException) -> int:
    """Whatever ends a program early that has more to do; `error` is reported on standard error."""
    _exit_status(error)
    _flush()
    return 1


class _Loaded:
    """A program that is run, and then checked.

    What it did to modules and the names in them is undone for the check. There, the starter code's names and the
    built-ins mean what they did before the program; only `fn_name` is the program's, whatever it is called. The
    program's functions return data (`values`).
    """

    def __init__(self, fn_name: str | None) -> None:
        self._fn_name = fn_name
        modules = [vars(module) for module in sys.modules.values() if type(module) is types.ModuleType]
        self._modules = [(names, dict(names)) for names in (sys.modules, *modules)]
        self._names = vars(_module("solution", {}))

    def run(self, code: types.CodeType) -> int:
        """Run the starter code, unless it is a header without a body, and the program; 0, or 1 if either raises."""
        try:
            starter = compiled(_input(), "starter.py")
            if not isinstance(starter, str):
                exec(starter, self._names)
            self._given = {name: value for name, value in self._names.items() if name != self._fn_name}
            exec(code, self._names)
        except BaseException as error:
            return _failed(error)
        return 0

    def check(self) -> int:
        """Run the check in the input, and write the word before it as a frame; status 1 and no frame if it raises."""
        try:
            for names, kept in self._modules:
                names.update(kept)
            exec(_input().partition(protocol.SEPARATOR)[2], self._seen())
            word = _input().partition(protocol.SEPARATOR)[0]  # only now, so that the program has met it in no object
            os.write(_OUTPUT, f'="{word}"\n'.encode())
        except BaseException as error:
            return _failed(error)
        return 0

    def _seen(self) -> Namespace:
        """The names that the check sees."""
        seen = {name: value for name, value in self._names.items() if name not in vars(builtins)} | self._given
        if self._fn_name in self._names:
            seen[self._fn_name] = self._names[self._fn_name]
        for name in seen.keys() - self._given.keys():
            if name == self._fn_name or (callable(seen[name]) and not issubclass(type(seen[name]), type)):
                seen[name] = returning_data(seen[name])
        return seen


def _plain(value: Any) -> Any:
    """A number that `json` does not know (numpy's, a fraction, a decimal) as an equal one that it does."""
    if isinstance(value, Fraction | Decimal):
        return next(number for number in (int(value), float(value)) if number == value)
    return value.item()


def _module(name: str, names: Namespace) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.clear()  # an empty dictionary takes many names at once
    module.__dict__.update(names)
    module.__dict__.update(__name__=name, __file__="main.py", __builtins__=builtins)
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
    _join_threads()
    atexit._run_exitfuncs()
    status = _flush()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    gc.collect()  # before and after, as CPython does: it puts files ahead of the descriptors that they write to
    for name in list(module.__dict__):  # files left open are flushed as their last reference goes
        if name != "__builtins__":
            module.__dict__[name] = None
    gc.collect()
    return _flush() or status  # destructors may have printed


def _join_threads() -> None:
    """As `threading._shutdown`, which works once: only where executors wait for it, and their threads stay."""
    while _thread._count() > 0:
        waited = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
        if not waited or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
            return
        for thread in waited:
            thread.join()


def _flush() -> int:
    status = 0
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:  # the program's own stream, or a descriptor it closed
            status = _BROKEN_FLUSH
    return status
