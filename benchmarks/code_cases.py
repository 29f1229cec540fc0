"""Programs and their tests, for `agree_code.py` and `verify_code.py`: from public data, and wrong ones made of them."""

import ast
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verify_code_peer import ROOT

from verifiers.tasks import CodeTask

_SCRIPT_SECONDS = 30.0
_MAX_CALLS = 40  # of a humaneval problem's check

Tests = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Case:
    """A program to judge. `source` is the data set, `variant` how the program was made of it."""

    source: str
    variant: str
    name: str
    code: str
    tests: Tests
    fn_name: str | None = None
    right: bool | None = None
    """The label, where there is one."""

    @property
    def response(self) -> str:
        """What a model would have written."""
        return f"</think>\n```python\n{self.code}\n```"

    def task(self, timeout: float) -> CodeTask:
        """For a pool; `timeout` in seconds for each test."""
        return CodeTask(self.response, self.tests, self.fn_name, None, timeout)


# Reading the data ------------------------------------------------------------------------------------------


def idioms() -> Iterator[Case]:
    """The tables of idioms, whose heads say how to read their titles."""
    for title, code in _table("code_idioms.txt"):
        name, *pairs = title.split(" | ")
        texts = [json.loads(text) for text in pairs] or ["3\n1 2 3\n", "6\n"]
        tests = [
            {"input": text, "output": output, "testtype": "stdin"}
            for text, output in zip(texts[::2], texts[1::2], strict=True)
        ]
        yield Case("idioms", "as given", name, code, tests, right=True)
    for title, code in _table("code_functions.txt"):
        name, *pairs = title.split(" | ")
        values = [json.loads(text) for text in pairs] or [[[2, 7, 11], 9], [0, 1], [[3, 3], 6], [0, 1]]
        tests = [_function_test(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
        yield Case("idioms", "as given", f"function: {name}", code, tests, "f", right=True)


def _table(name: str) -> list[tuple[str, str]]:
    _, *parts = (ROOT / "tests/verifiers" / name).read_text().split("\n=== ")
    return [(title, code) for title, _, code in (part.partition("\n") for part in parts)]


def apps(data: Path) -> Iterator[Case]:
    problems = json.loads((data / "apps_stdio_problems.json").read_text()).values()
    tests = {problem["id"]: [test | {"testtype": "stdin"} for test in problem["tests"]] for problem in problems}
    for at, row in enumerate(_rows(data / "apps_stdio_programs.jsonl")):
        right = row["verdict"] == "AC"
        yield Case("apps_stdio", "as given", f"{row['problem']} #{at}", row["code"], tests[row["problem"]], right=right)


def mbpp(data: Path, left_out: Counter[str]) -> Iterator[Case]:
    """References on their own asserts, as far as these are calls with literals."""
    for row in _rows(data / "mbpp.jsonl"):
        calls = [_call_of(line) for line in row["test_list"] + row["challenge_test_list"]]
        tests = []
        for name, arguments, expected in filter(None, calls):
            try:
                tests.append((name, _function_test(arguments, expected)))
            except TypeError:
                left_out["mbpp: a value that JSON has no form for"] += 1
        left_out["mbpp: an assert that is not a call on literals"] += calls.count(None)
        if tests:
            name = tests[0][0]
            chosen = [test for called, test in tests if called == name]
            yield Case("mbpp", "as given", f"mbpp {row['task_id']}", row["code"], chosen, name)


def cruxeval(data: Path, left_out: Counter[str]) -> Iterator[Case]:
    for row in _rows(data / "cruxeval.jsonl"):
        call = _call_of(f"assert f({row['input']}) == {row['output']}")
        try:
            if call is not None:
                yield Case("cruxeval", "as given", row["id"], row["code"], [_function_test(*call[1:])], "f")
            else:
                left_out["cruxeval: not a call on literals"] += 1
        except TypeError:
            left_out["cruxeval: a value that JSON has no form for"] += 1


RECORDER = """
import copy, json
calls = []
def candidate(*arguments):
    before = copy.deepcopy(arguments)
    value = {entry_point}(*arguments)
    calls.append((before, value))
    return value
check(candidate)
for arguments, value in calls[:{limit}]:
    try:
        print(json.dumps([list(arguments), value]))
    except (TypeError, ValueError):
        print("null")
"""


def humaneval(data: Path, left_out: Counter[str]) -> Iterator[Case]:
    """References on the inputs that their checks call them with."""
    for row in _rows(data / "humaneval.jsonl"):
        code = row["prompt"] + row["canonical_solution"]
        script = code + row["test"] + RECORDER.format(entry_point=row["entry_point"], limit=_MAX_CALLS)
        lines = run_python(script, "").splitlines()
        calls = [json.loads(line) for line in lines if line != "null"]
        left_out["humaneval: a value that JSON has no form for"] += len(lines) - len(calls)
        tests = [_function_test(arguments, value) for arguments, value in calls if arguments]
        if tests:
            yield Case("humaneval", "as given", row["task_id"], code, tests, row["entry_point"])


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as given": lambda text: text,
    "no last newline": lambda text: text.rstrip("\n"),
    "blank lines around": lambda text: f"\n\n{text}\n\n \n",
    "white space around lines": lambda text: "\n".join(f"\t {line}  " for line in text.split("\n")),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "lone CR": lambda text: text.replace("\n", "\r"),
    "two spaces": lambda text: text.replace(" ", "  "),
    "no-break spaces": lambda text: text.replace(" ", "\xa0"),
    "decimals": lambda text: re.sub(r"(?<![\w.])(\d+)(?![\w.:])", r"\1.000", text),
    "exponents": lambda text: re.sub(r"(?<![\w.])(\d+)(?![\w.:])", r"\1e0", text),
    "leading zeros": lambda text: re.sub(r"(?<![\w.])(\d+)(?![\w.:])", r"00\1", text),
    "underscores": lambda text: re.sub(r"(\d)(\d)", r"\1_\2", text),
    "full-width digits": lambda text: text.translate({ord("0") + n: 0xFF10 + n for n in range(10)}),
    "one digit changed": lambda text: re.sub(
        r"(\d)(?=\D*$)", lambda found: str((int(found[1]) + 1) % 10), text, count=1
    ),
    "one digit more": lambda text: re.sub(r"(\d)(?=\D*$)", r"\g<1>1", text, count=1),
    "a little off": lambda text: re.sub(r"(?<![\w.])(\d+)(?=\D*$)", r"\1.0000000000001", text, count=1),
    "upper case": str.upper,
    "last line missing": lambda text: text.rstrip("\n").rpartition("\n")[0],
    "last line twice": lambda text: text.rstrip("\n") + "\n" + text.rstrip("\n").rpartition("\n")[2],
    "first line last": lambda text: "\n".join([*text.strip().split("\n")[1:], text.strip().split("\n")[0]]),
    "blank line within": lambda text: text.strip().replace("\n", "\n\n", 1),
    "null byte": lambda text: text + "\0",
    "zero-width space": lambda text: text.rstrip("\n") + "\u200b",
    "form feeds": lambda text: text.replace("\n", "\f\n\f"),
    "nothing": lambda text: "",
}


def contest_outputs(data: Path) -> Iterator[Case]:
    """Programs that print the longest output of a contest problem's tests, in every spelling."""
    for row in _rows(data / "gcj_kickstart_stdio.jsonl"):
        output = max((test["output"] for test in row["tests"]), key=len)
        tests = [{"input": "", "output": output, "testtype": "stdin"}]
        for spelling, change in SPELLINGS.items():
            code = f"import sys\nsys.stdout.write({change(output)!a})"
            yield Case("gcj_kickstart", spelling, row["id"], code, tests)


def run_python(script: str, text: str) -> str:
    """What a script prints that reads `text`."""
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SCRIPT_SECONDS, check=False)
    return done.stdout


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _call_of(text: str) -> tuple[str, list[Any], Any] | None:
    """Name, arguments and value of `assert name(literals) == literal`; None for any other line."""
    try:
        statement = ast.parse(text.strip()).body[0]
        match statement:
            case ast.Assert(ast.Compare(ast.Call(ast.Name(name), arguments, []), [ast.Eq()], [value])):
                return name, [ast.literal_eval(argument) for argument in arguments], ast.literal_eval(value)
    except (SyntaxError, ValueError):
        pass
    return None


def _function_test(arguments: Sequence[Any], value: Any) -> dict[str, str]:
    """Raises TypeError for what JSON has no form for (tuples become lists)."""
    lines = "\n".join(_to_json(argument) for argument in arguments)
    return {"input": lines, "output": _to_json(value), "testtype": "functional"}


def _to_json(value: Any) -> str:
    text = json.dumps(value)
    if json.loads(text) != _listed(value):  # keys that are not strings
        raise TypeError("no JSON form")
    return text


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(part) for part in value]
    return {key: _listed(part) for key, part in value.items()} if isinstance(value, dict) else value


# Wrong programs --------------------------------------------------------------------------------------------


def variants(cases: Sequence[Case], mutants: int, generator: random.Random) -> Iterator[Case]:
    """Each case, then wrong ones made of it: most are wrong, some mutants are not."""
    for at, case in enumerate(cases):
        yield case
        if case.source == "gcj_kickstart":
            continue
        yield replace(case, variant="other expected output", tests=_other_output(case.tests, generator), right=None)
        if case.source != "idioms":  # where every program solves the same problem
            other = cases[(at + 1 + generator.randrange(len(cases) - 1)) % len(cases)]
            name = case.fn_name
            code = re.sub(rf"\b{other.fn_name}\b", name, other.code) if name and other.fn_name else other.code
            yield replace(case, variant="another program", code=code, right=None)
        for code in _mutants(case.code, mutants, generator):
            yield replace(case, variant="mutant", code=code, right=None)


def _other_output(tests: Tests, generator: random.Random) -> Tests:
    """The same tests, with a change to the expected output of one."""
    chosen = generator.randrange(len(tests))
    return [_changed(test, generator) if at == chosen else test for at, test in enumerate(tests)]


def _changed(test: dict[str, str], generator: random.Random) -> dict[str, str]:
    if test["testtype"] == "stdin":
        words = re.split(r"(\s+)", test["output"].strip())
        at = 2 * generator.randrange((len(words) + 1) // 2)
        words[at] = str(int(words[at]) + 1) if words[at].lstrip("-").isdecimal() else words[at] + "x"
        return test | {"output": "".join(words)}
    value = json.loads(test["output"])
    match value:
        case bool():
            other: Any = not value
        case int() | float():
            other = value + 1
        case str():
            other = value + "x"
        case list() if value and generator.random() < 0.5:
            other = value[1:]
        case list():
            other = [*value, 0]
        case dict():
            other = value | {"x": 0}
        case _:
            other = 0
    return test | {"output": json.dumps(other)}


_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Div,
    ast.Div: ast.FloorDiv,
    ast.Mod: ast.FloorDiv,
}


def _mutants(code: str, count: int, generator: random.Random) -> Iterator[str]:
    """`code` with one change, up to `count` times."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    places = [node for node in ast.walk(tree) if _mutable(node)]
    for place in generator.sample(places, min(count, len(places))):
        match place:
            case ast.Constant(int(value)):
                place.value = value + 1
                yield ast.unparse(tree)
                place.value = value
            case ast.Compare(_, [operator, *_]):
                place.ops[0] = _COMPARISONS[type(operator)]()
                yield ast.unparse(tree)
                place.ops[0] = operator
            case ast.BinOp(op=operation):
                place.op = _OPERATORS[type(operation)]()
                yield ast.unparse(tree)
                place.op = operation


def _mutable(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return type(value) is int and value < 1000  # not the sizes that cost memory
        case ast.Compare(_, [operator, *_]):
            return type(operator) in _COMPARISONS
        case ast.BinOp(op=operation):
            return type(operation) in _OPERATORS
    return False
