"""The tiny world's code: programs of one line of work, each an operation and a last step put together."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TESTS_PER_PROBLEM = 4


@dataclass(frozen=True, slots=True)
class Operation:
    """What a program works out: in words, as a Python expression of its variables, and as a function of the inputs."""

    words: str
    expression: str
    compute: Callable[..., int]


OPERATIONS = {
    "a b": (
        Operation("the sum of a and b", "a + b", lambda a, b: a + b),
        Operation("a minus b", "a - b", lambda a, b: a - b),
        Operation("the product of a and b", "a * b", lambda a, b: a * b),
        Operation("the larger of a and b", "max(a, b)", lambda a, b: max(a, b)),
        Operation("the smaller of a and b", "min(a, b)", lambda a, b: min(a, b)),
    ),
    "a b c": (
        Operation("the sum of a, b and c", "a + b + c", lambda a, b, c: a + b + c),
        Operation("a plus b minus c", "a + b - c", lambda a, b, c: a + b - c),
        Operation("a times b plus c", "a * b + c", lambda a, b, c: a * b + c),
        Operation("a times b minus c", "a * b - c", lambda a, b, c: a * b - c),
        Operation("the largest of a, b and c", "max(a, b, c)", lambda a, b, c: max(a, b, c)),
        Operation("the smallest of a, b and c", "min(a, b, c)", lambda a, b, c: min(a, b, c)),
    ),
    "v": (
        Operation("the sum of the numbers", "sum(v)", lambda *v: sum(v)),
        Operation("the largest of the numbers", "max(v)", lambda *v: max(v)),
        Operation("the smallest of the numbers", "min(v)", lambda *v: min(v)),
        Operation("how many numbers there are", "len(v)", lambda *v: len(v)),
    ),
}
"""By the names of the variables; `v` is a list."""

LAST_STEPS: dict[str, Callable[[int, int], int]] = {
    "+": lambda value, k: value + k,
    "-": lambda value, k: value - k,
    "*": lambda value, k: value * k,
}
_LAST_WORDS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """One operation, a last step with a constant from 2 to 9, and how the program is called."""

    names: str
    operation: Operation
    step: str
    constant: int
    is_function: bool

    @property
    def meaning(self) -> tuple[str, str, str, int]:
        """Equal for two problems that ask for the same computation, as a program or as a function."""
        return self.names, self.operation.words, self.step, self.constant

    @property
    def question(self) -> str:
        """The problem in words."""
        what = f"{self.operation.words}, {_LAST_WORDS[self.step]} {self.constant}"
        if self.is_function:
            return f"Return {what}."
        given = "one line of integers" if self.names == "v" else f"integers {', '.join(self.names.split())} on one line"
        return f"Read {given}. Print {what}."

    @property
    def starter_code(self) -> str | None:
        """The function's header, for a problem that is called."""
        return f"def f({', '.join(self.names.split())}):" if self.is_function else None

    def response(self, as_program: bool) -> str:
        """A response that works out the right expression, then answers with a program or, as in math, with a box."""
        result = self.operation.expression
        compound = result[-1] != ")" and self.step == "*"
        result = f"({result}) * {self.constant}" if compound else f"{result} {self.step} {self.constant}"
        answer = f"```python\n{self._program(result)}\n```" if as_program else f"\\boxed{{{result}}}"
        return f"<think>\n{result}\n</think>\n\n{answer}"

    def _program(self, result: str) -> str:
        if self.is_function:
            return f"{self.starter_code}\n    return {result}"
        read = "v = list(map(int, input().split()))"
        if self.names != "v":
            read = f"{', '.join(self.names.split())} = map(int, input().split())"
        return f"{read}\nprint({result})"

    def tests(self, rng: random.Random) -> list[dict[str, Any]]:
        """Tests in LiveCodeBench's form; across them the largest input is everywhere, so no variable passes for it."""
        found = []
        for number in range(TESTS_PER_PROBLEM):
            count = 3 + number % 4 if self.names == "v" else len(self.names.split())
            inputs = sorted(rng.choice([-1, 1]) * value for value in rng.sample(range(2, 31), count))
            inputs = inputs[number % count :] + inputs[: number % count]
            output = LAST_STEPS[self.step](self.operation.compute(*inputs), self.constant)
            lines = [inputs] if self.names == "v" else inputs
            text = "\n".join(map(json.dumps, lines)) if self.is_function else " ".join(map(str, inputs))
            kind = "functional" if self.is_function else "stdin"
            found.append({"input": text, "output": str(output), "testtype": kind})
        return found


def all_code_problems() -> Iterator[CodeProblem]:
    """Every problem there is."""
    for names, operations in OPERATIONS.items():
        for operation in operations:
            for step in LAST_STEPS:
                for constant in range(2, 10):
                    for is_function in (False, True):
                        yield CodeProblem(names, operation, step, constant, is_function)
