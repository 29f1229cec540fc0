"""The tiny world: problems small enough for a model of two million parameters to learn in minutes."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_rl.data.tiny_code import CodeProblem, all_code_problems
from megatron_rl.data.tiny_math import MathProblem, draw_math
from megatron_rl.run_folder import write_lines

MATH_TRAIN, CODE_SFT, HELD_OUT = 4000, 400, 200
CAREFUL_FRACTION = 0.35
"""Of the math responses to imitate; the rest guess at once. RL finds out which of the two ways pays."""
PROGRAM_FRACTION = 0.35
"""Of the code responses to imitate; the rest name a formula and write no program."""


def write_tiny_world(folder: Path, seed: int) -> None:
    """Write `{math,code}_{train,held_out}.jsonl` and `sft.jsonl` (responses to training problems of both domains).

    Training and held-out problems differ in meaning, not only in wording. The same seed gives the same bytes.
    """
    rng = random.Random(seed)
    math_train, math_held_out = _math_split(rng)
    code_train, code_held_out = _code_split(rng)
    sft = [_math_row(f"sft-math-{i}", problem, rng.random() < CAREFUL_FRACTION) for i, problem in enumerate(math_train)]
    sft += [
        _code_row(f"sft-code-{i}", problem, rng, rng.random() < PROGRAM_FRACTION)
        for i, problem in enumerate(code_train[:CODE_SFT])
    ]
    rng.shuffle(sft)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "math_train": [_math_row(f"math-{i}", problem) for i, problem in enumerate(math_train)],
        "math_held_out": [_math_row(f"math-held-out-{i}", problem) for i, problem in enumerate(math_held_out)],
        "code_train": [_code_row(f"code-{i}", problem, rng) for i, problem in enumerate(code_train)],
        "code_held_out": [_code_row(f"code-held-out-{i}", problem, rng) for i, problem in enumerate(code_held_out)],
        "sft": sft,
    }
    for name, rows in files.items():
        _write_rows(folder / f"{name}.jsonl", rows)


def _math_split(rng: random.Random) -> tuple[list[MathProblem], list[MathProblem]]:
    problems: dict[tuple[int, ...], MathProblem] = {}
    while len(problems) < MATH_TRAIN + HELD_OUT:
        problem = draw_math(rng)
        problems.setdefault(problem.meaning, problem)
    drawn = list(problems.values())
    return drawn[HELD_OUT:], drawn[:HELD_OUT]


def _code_split(rng: random.Random) -> tuple[list[CodeProblem], list[CodeProblem]]:
    problems = list(all_code_problems())
    rng.shuffle(problems)
    meanings = list(dict.fromkeys(problem.meaning for problem in problems))
    held_out = set(meanings[: HELD_OUT // 2])  # each has two forms
    return [p for p in problems if p.meaning not in held_out], [p for p in problems if p.meaning in held_out]


def _math_row(identifier: str, problem: MathProblem, careful: bool | None = None) -> dict[str, Any]:
    row = {"id": identifier, "domain": "math", "prompt": problem.question, "answer": str(problem.answer)}
    return row if careful is None else row | {"response": problem.response(careful)}


def _code_row(
    identifier: str, problem: CodeProblem, rng: random.Random, as_program: bool | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": identifier, "domain": "code", "prompt": problem.question, "tests": problem.tests(rng)}
    if problem.is_function:
        row |= {"fn_name": "f", "starter_code": problem.starter_code}
    return row if as_program is None else row | {"response": problem.response(as_program)}


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_lines(path, (json.dumps(row) for row in rows))
