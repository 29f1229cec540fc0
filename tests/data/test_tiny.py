"""The tiny world, whatever its problems are: reproducible, right, judged right, and held out in meaning."""

import ast
import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import DataConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.tiny import write_tiny_world
from verifiers import Verdict
from verifiers.math import verify_math
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask

FILES = ("math_train", "math_held_out", "code_train", "code_held_out", "sft")
CODE_SAMPLE = 30
Row = dict[str, Any]
World = dict[str, list[Row]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world of seed 1."""
    folder = tmp_path_factory.mktemp("tiny") / "world"
    write_tiny_world(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    """Its lines, by the names of the files."""
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in FILES}


def of_domain(rows: list[Row], domain: str) -> list[Row]:
    return [row for row in rows if row["domain"] == domain]


# The files ---------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_tiny_world(tmp_path, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in FILES)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_another_seed_writes_other_problems(world: World, tmp_path: Path) -> None:
    write_tiny_world(tmp_path, seed=2)
    for name, rows in world.items():
        other = {json.loads(line)["prompt"] for line in (tmp_path / f"{name}.jsonl").open()}
        assert other != {row["prompt"] for row in rows}


@pytest.mark.parametrize("name", FILES)
def test_training_can_load_every_file(folder: Path, world: World, name: str) -> None:
    problems = load_problems(DataConfig(path=str(folder / f"{name}.jsonl")), need_response=name == "sft")
    assert [(problem.id, problem.domain) for problem in problems] == [(r["id"], r["domain"]) for r in world[name]]
    domains = {"math", "code"} if name == "sft" else {name.partition("_")[0]}
    assert {problem.domain for problem in problems} == domains


def test_every_problem_to_imitate_is_one_of_training(world: World) -> None:
    for domain in ("math", "code"):
        training = {question(row) for row in world[f"{domain}_train"]}
        assert {question(row) for row in of_domain(world["sft"], domain)} <= training


def programs(world: World) -> list[Row]:
    """The code responses to imitate that are programs."""
    return [row for row in of_domain(world["sft"], "code") if "```python" in row["response"]]


def question(row: Row) -> tuple[str, str]:
    """What a policy is asked."""
    return row["prompt"], row.get("starter_code", "")


# Math --------------------------------------------------------------------------------------------------------

WORDING = re.compile(r"(?:What is|Work out) (\d(?:[+-]\d)*)[?.]")
"""A question and the expression it asks for, read without the code that wrote it."""


def expression(prompt: str) -> str:
    match = WORDING.fullmatch(prompt)
    assert match, f"this test cannot read {prompt!r}; add the wording to WORDING"
    return match[1]


def meaning(text: str) -> list[str]:
    """The same for expressions that differ in the order of their terms."""
    return sorted(re.findall(r"[+-]\d", f"+{text}"))


def test_every_math_answer_is_right(world: World) -> None:
    for name in ("math_train", "math_held_out", "sft"):
        for row in of_domain(world[name], "math"):
            assert row["answer"] == str(eval(expression(row["prompt"]))), row


def test_no_math_problem_is_asked_twice_not_even_in_other_words_or_order(world: World) -> None:
    meanings = [tuple(meaning(expression(row["prompt"]))) for name in FILES[:2] for row in world[name]]
    assert len(meanings) == len(set(meanings))


def test_math_responses_are_of_two_kinds_and_every_step_is_right(world: World) -> None:
    kinds = set()
    for row in of_domain(world["sft"], "math"):
        reasoning = row["response"].removeprefix("<think>\n").partition("\n</think>")[0]
        steps = [step.split("=") for step in reasoning.split()]
        assert all(eval(left) == int(right) for left, right in steps), row
        kinds.add(len(steps))
    assert kinds == {1, 4}


def test_the_verifier_passes_the_right_math_responses_and_no_other(world: World) -> None:
    rows = of_domain(world["sft"], "math")
    right = 0
    for row in rows:
        boxed = re.findall(r"\\boxed\{([^{}]*)\}", row["response"].partition("</think>")[2])
        claimed_right = boxed[-1:] == [str(eval(expression(row["prompt"])))]
        assert (verify_math(row["response"], row["answer"]).verdict is Verdict.PASS) == claimed_right, row
        right += claimed_right
    assert right > len(rows) / 2


# Code --------------------------------------------------------------------------------------------------------


def test_programs_to_imitate_pass_their_tests_in_the_sandbox(world: World) -> None:
    rows = random.Random(5).sample(programs(world), CODE_SAMPLE)
    with VerifierPool(1) as pool:
        futures = [
            pool.submit(CodeTask(row["response"], row["tests"], row.get("fn_name"), row.get("starter_code")))
            for row in rows
        ]
        assert [(row["id"], future.result().verdict) for row, future in zip(rows, futures, strict=True)] == [
            (row["id"], Verdict.PASS) for row in rows
        ]


@cache
def runner(program: str, fn_name: str | None) -> Callable[[str], str | None]:
    """From a test's input to the program's output, None where it fails. Fast, and no sandbox: for our own programs."""
    code = compile(program, "program", "exec")

    def run(text: str) -> str | None:
        lines, printed = iter(text.splitlines()), list[str]()
        scope: dict[str, Any] = {
            "input": lambda: next(lines),
            "print": lambda *values: printed.append(" ".join(map(str, values))),
        }
        with contextlib.suppress(Exception):
            exec(code, scope)
            if fn_name is not None:
                printed.append(json.dumps(scope[fn_name](*map(json.loads, text.splitlines()))))
            return "\n".join(printed)
        return None

    return run


def source_of(row: Row) -> str:
    (program,) = re.findall(r"```python\n(.*)\n```", row["response"].partition("</think>")[2], flags=re.DOTALL)
    return program


def program_of(row: Row) -> Callable[[str], str | None]:
    return runner(source_of(row), row.get("fn_name"))


def passes(run: Callable[[str], str | None], row: Row) -> bool:
    return all(run(test["input"]) == test["output"] for test in row["tests"])


def takes(row: Row) -> tuple[str, int]:
    """How a program is called, and with how many numbers; 0: with any number of them."""
    counts = {len(re.findall(r"-?\d+", test["input"])) for test in row["tests"]}
    return row.get("starter_code", ""), counts.pop() if len(counts) == 1 else 0


def other_inputs(row: Row, rng: random.Random) -> Iterator[str]:
    """The inputs of its tests with other numbers of the same signs in them, four times over."""
    for test in row["tests"] * 4:
        yield re.sub(r"\d+", lambda _: str(rng.randint(1, 30)), test["input"])


def test_code_responses_are_of_two_kinds_around_the_same_expression(world: World) -> None:
    kinds = {"box": 0, "program": 0}
    for row in of_domain(world["sft"], "code"):
        reasoning, _, answer = row["response"].removeprefix("<think>\n").partition("\n</think>\n\n")
        if answer == f"\\boxed{{{reasoning}}}":
            kinds["box"] += 1
        else:
            assert f"return {reasoning}\n```" in answer or f"print({reasoning})\n```" in answer, row
            kinds["program"] += 1
    assert min(kinds.values()) > 100, kinds


def test_programs_to_imitate_pass_their_tests(world: World) -> None:
    for row in programs(world):
        assert passes(program_of(row), row), row


def test_tests_tell_operations_apart(world: World) -> None:
    """A program that passes the tests of another problem is a solution of it: it agrees on any other inputs, too."""
    rng = random.Random(5)
    rows = programs(world)
    for row in rows:
        inputs = list(other_inputs(row, rng))
        right = [program_of(row)(text) for text in inputs]
        assert None not in right
        for other in rows:
            if other.get("fn_name") == row.get("fn_name") and passes(program_of(other), row):
                assert [program_of(other)(text) for text in inputs] == right, (row, other)


def one_edit_away(program: str) -> Iterator[str]:
    """The program with an operation replaced by one of its operands or by another operation on them."""
    lines = program.splitlines()
    for node in ast.walk(ast.parse(program)):
        edits: list[ast.expr] = []
        if isinstance(node, ast.BinOp):
            operators = (ast.Add(), ast.Sub(), ast.Mult())
            edits = [node.left, node.right, *(ast.BinOp(node.left, operator, node.right) for operator in operators)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("max", "min", "sum", "len"):
            edits = [*node.args, *(ast.Call(ast.Name(name), node.args, []) for name in ("max", "min", "sum", "len"))]
        for edit in edits:
            assert isinstance(node, ast.expr)
            before, line, after = lines[: node.lineno - 1], lines[node.lineno - 1], lines[node.lineno :]
            edited = f"{line[: node.col_offset]}({ast.unparse(edit)}){line[node.end_col_offset :]}"
            yield "\n".join([*before, edited, *after])


def test_tests_let_no_nearly_right_program_pass(world: World) -> None:
    rng = random.Random(5)
    rows = programs(world)
    weak = set()
    for row in rows:
        inputs = list(other_inputs(row, rng))
        right = [program_of(row)(text) for text in inputs]
        for program in one_edit_away(source_of(row)):
            run = runner(program, row.get("fn_name"))
            if passes(run, row) and [run(text) for text in inputs] != right:
                weak.add(f"{row['prompt']} {program}")
    assert weak == set()


def computation(row: Row) -> str:
    """What a code problem asks for, whether as a program or as a function."""
    match = re.fullmatch(r"(?:Read .*\. Print|Return) (.*)\.", row["prompt"])
    assert match, row["prompt"]
    return match[1]


def test_no_held_out_computation_is_asked_in_training(world: World) -> None:
    training, held_out = ({computation(row) for row in world[name]} for name in ("code_train", "code_held_out"))
    assert len(held_out) == len(world["code_held_out"]) / 2
    assert not training & held_out


def test_no_program_to_imitate_solves_a_held_out_problem_that_is_called_alike(world: World) -> None:
    for row in programs(world):
        solved = [
            other for other in world["code_held_out"] if takes(other) == takes(row) and passes(program_of(row), other)
        ]
        assert solved == [], (row, solved)
