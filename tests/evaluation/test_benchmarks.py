"""Every benchmark can be met: right answers score 1, and those of the next problem 0."""

import base64
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config.schema import DataConfig, Domain, VerifierConfig
from megatron_rl.data.problems import Problem
from megatron_rl.data.prompts import user_message
from megatron_rl.errors import InputError
from megatron_rl.evaluation.benchmarks import BENCHMARKS, find_benchmarks
from megatron_rl.evaluation.figures import figures_of, problem_figures
from megatron_rl.evaluation.journal import EvaluationJournal
from megatron_rl.evaluation.table import markdown_table
from megatron_rl.experience import Experience, ScoredSample, verification_task
from megatron_rl.rollout.samples import Sample, SampleRequest
from verifiers.isolation import IsolationLevel
from verifiers.math import verify_math
from verifiers.verdict import Result, Verdict

PUBLIC = Path(__file__).parents[3] / "shared/data"
"""Where the files that the authors publish may be."""
VERIFIER = VerifierConfig(code_timeout_seconds=60, min_isolation=IsolationLevel.LIMITS)  # mbpp/123 takes its time
Rows = list[dict[str, Any]]
ANSWERS = ["7", "12", "105"]
LCB_PROGRAMS = {
    "abc1_a": "print(2 * int(input()))",
    "3001": "class Solution:\n    def triple(self, x): return 3 * x",
    "abc1_b": "print(4 * int(input()))",
}


def lcb_row(name: str, day: str = "2024-09-15") -> dict[str, Any]:
    """A problem of `LCB_PROGRAMS` as LiveCodeBench publishes it, private tests packed."""
    is_function = name == "3001"
    factor, kind = 2 + [*LCB_PROGRAMS].index(name), "functional" if is_function else "stdin"
    tests = [{"input": str(x), "output": str(factor * x), "testtype": kind} for x in (1, 2, 30)]
    return {
        "question_title": f"Times {factor}",
        "question_content": f"Multiply by {factor}.",
        "platform": "leetcode" if is_function else "atcoder",
        "question_id": name,
        "contest_id": "1",
        "contest_date": f"{day}T00:00:00",
        "starter_code": "class Solution:\n    def triple(self, x: int) -> int:\n        " if is_function else "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests[1:])))).decode(),
        "metadata": json.dumps({"func_name": "triple"} if is_function else {}),
    }


def humaneval_row(number: int, prompt: str, solution: str, entry_point: str, test: str) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": prompt,
        "entry_point": entry_point,
        "canonical_solution": solution,
        "test": test,
    }


MEAN = (
    'from typing import List\n\n\ndef mean(numbers: List[float]) -> float:\n    """ Of numbers.\n    """\n',
    "    return sum(numbers) / len(numbers)\n",
    "mean",
)
ZERO = (
    "import math\n\n\ndef poly(xs: list, x: float):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\n\n"
    'def find_zero(xs: list):\n    """ Of a + b x. """\n',
    "    return -xs[0] / xs[1]\n",
    "find_zero",
)
HUMANEVAL: Rows = [
    humaneval_row(
        0, *MEAN, "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1.0, 2.0]) == 1.5\n\n"
    ),
    humaneval_row(32, *ZERO, "\n\ndef check(candidate):\n    assert abs(poly([2, 4], candidate([2, 4]))) < 1e-4\n"),
]
ASSERTION = """import numpy as np

def assertion(out, exp, atol):
    if atol == 0 and isinstance(exp, float):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

"""
LOOP = "for i, (inp, exp) in enumerate(zip(inputs, results)):"
HUMANEVAL_PLUS: Rows = [
    humaneval_row(
        *(0, *MEAN),
        f"{ASSERTION}\ndef check(candidate):\n    inputs = [[[1, 2]], [[0.1]]]\n    results = [1.5, 0.1000001]\n"
        f"    {LOOP}\n        assertion(candidate(*inp), exp, 0)\n",
    ),
    humaneval_row(
        *(32, *ZERO),
        "import math\n\ndef _poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\n"
        "def check(candidate):\n    inputs = [[[2, 4]], [[3, 9]]]\n    results = [-0.5, -1 / 3]\n"
        f"    {LOOP}\n        assert _poly(*candidate(*inp), inp) <= 0.0001\n",
    ),
]


def mbpp_row(number: int, name: str, code: str, *tests: str, setup: str = "") -> dict[str, Any]:
    columns = {"text": f"Write a function {name}.", "code": code, "task_id": number, "test_setup_code": setup}
    return {**columns, "test_list": list(tests), "challenge_test_list": []}


NODE = "class Node:\r\n    def __init__(self, x): self.x = x\r\ndef value(node): return node.x"
MBPP: Rows = [
    mbpp_row(10, "prompt", "def prompt(x): return x", "assert prompt(1) == 1"),
    mbpp_row(11, "pairs", "def pairs(x): return {(x, x)}", "assert set(pairs(1)) == {(1, 1)}", "assert pairs(0)"),
    mbpp_row(126, "sum", "def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    mbpp_row(510, "value", NODE, "assert value(node) == 3", setup="node = Node(3)"),
    mbpp_row(511, "validation", "def validation(x): return x", "assert validation(1) == 1"),
]
MBPP_PLUS: Rows = [
    {
        "task_id": number,
        "code": f"def {name}(x): return {factor} * x",
        "prompt": f"Write a function {name}.",
        "source_file": "",
        "test_imports": ["import math"],
        "test_list": [f"assert {name}(1) == {factor}"],
        "test": f"{ASSERTION}inputs = [[1], [0.5]]\nresults = [{factor}, math.fsum([{factor / 2}])]\n"
        f"{LOOP}\n    assertion({name}(*inp), exp, 0)\n",
    }
    for number, name, factor in ((2, "double", 2), (3, "triple", 3))
]
ROWS: dict[str, Rows] = {
    "aime24.jsonl": [{"id": f"x-{a}", "problem": f"Find {a}.", "expected_answer": a} for a in ANSWERS],
    "aime25.jsonl": [{"id": f"y-{a}", "problem": f"Find {a}.", "expected_answer": a} for a in ANSWERS],
    "hmmt_feb_2025.jsonl": [
        {"problem_idx": i, "problem": f"Find {a}.", "answer": rf"\sqrt{{{a}}}", "problem_type": ["Algebra"]}
        for i, a in enumerate(ANSWERS, start=1)
    ],
    "brumo_2025.jsonl": [{"problem_idx": i, "problem": f"Find {a}.", "answer": a} for i, a in enumerate(ANSWERS)],
    "amc23_test.jsonl": [{"id": i, "problem": f"Find {a}.", "answer": float(a)} for i, a in enumerate(ANSWERS)],
    "math500_test.jsonl": [{"problem": f"Find {a}.", "answer": rf"\frac{{{a}}}{{11}}"} for a in ANSWERS],
    "math_test5000_raw.jsonl": [{"problem": f"Find {a}.", "solution": rf"It is $\boxed{{{a}}}$."} for a in ANSWERS],
    "gsm8k_test.jsonl": [{"question": f"Find {a}.", "answer": f"It is <<{a}={a}>>{a}.\n#### {a}"} for a in ANSWERS],
    "code_generation_lite/test3.jsonl": [lcb_row("abc1_a", "2024-07-31"), lcb_row("abc1_b", "2024-08-03")],
    "code_generation_lite/test4.jsonl": [lcb_row("3001")],
    "code_generation_lite/test5.jsonl": [lcb_row("abc1_a", "2025-01-04")],
    "code_generation_lite/test6.jsonl": [lcb_row(name, "2025-02-01") for name in LCB_PROGRAMS],
    "humaneval.jsonl": HUMANEVAL,
    "humanevalplus.jsonl": HUMANEVAL_PLUS,
    "mbpp.jsonl": MBPP,
    "mbppplus.jsonl": MBPP_PLUS,
}


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(name: str, folder: Path) -> list[Problem]:
    (benchmark,) = find_benchmarks([name], folder, DataConfig(path=""), samples=1)
    return benchmark.problems()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder of the benchmarks' files."""
    for file, rows in ROWS.items():
        write(tmp_path / file, rows)
    return tmp_path


def right_answers(name: str, problems: list[Problem], folder: Path) -> list[str]:
    """Responses with the references of the files."""
    if problems[0].domain is Domain.MATH:
        return [boxed(problem.answer or "") for problem in problems]
    programs = {}
    for file in BENCHMARKS[name].files:
        for row in map(json.loads, (folder / file).read_text().splitlines()):
            if name.startswith("livecodebench"):
                programs[row["question_id"]] = LCB_PROGRAMS[row["question_id"]]
            else:
                programs[str(row["task_id"])] = row.get("code") or row["prompt"] + row["canonical_solution"]
    return [f"so it is</think>\n```python\n{programs[problem.id.partition('/')[2]]}\n```" for problem in problems]


def boxed(answer: str) -> str:
    return f"so it is</think> \\boxed{{{answer}}}"


def judged(index: int, response: str, result: Result) -> ScoredSample:
    return ScoredSample(Sample(SampleRequest(index, 0, (1, 2), seed=index), 2, (3, 4), (), response, False, 0), result)


def sample_of(index: int, answer: str, reference: str) -> ScoredSample:
    return judged(index, boxed(answer), verify_math(boxed(answer), reference))


def score(problems: list[Problem], responses: list[str]) -> float:
    samples = [
        judged(index, response, verification_task(problem, response, VERIFIER).run())
        for index, (problem, response) in enumerate(zip(problems, responses, strict=True))
    ]
    return float(figures_of(Experience(samples, [], 1.0, 1.0, 0, 0.0), problems)["accuracy"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_right_answers_score_1_and_those_of_another_problem_0(name: str, made: Path) -> None:
    problems = load(name, made)
    assert len(problems) > 1
    right = right_answers(name, problems, made)
    assert score(problems, right) == 1.0
    assert score(problems, [*right[1:], right[0]]) == 0.0


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("aime24", 30), ("aime25", 30), ("hmmt25", 30), ("brumo25", 30), ("amc23", 40), ("math500", 500)),
        *(("math", 5000), ("gsm8k", 1319), ("humaneval", 164), ("humaneval_plus", 164), ("mbpp", 500)),
        *(("mbpp_plus", 378), ("livecodebench_v5", 279), ("livecodebench_v6", 175)),
    ],
)
def test_the_published_files(name: str, count: int) -> None:
    if not all((PUBLIC / file).is_file() for file in BENCHMARKS[name].files):
        pytest.skip(f"they are not in {PUBLIC}")
    problems = load(name, PUBLIC)
    assert len(problems) == count
    if name.startswith("livecodebench"):  # which has no references
        return
    right = right_answers(name, problems, PUBLIC)
    assert score(problems, right) == 1.0
    wrong = [boxed(f"{p.answer} + 1") for p in problems] if problems[0].answer else [*right[1:], right[0]]
    assert score(problems, wrong) < 0.01


def test_every_problem_has_its_own_figures(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"prompt": "?", "answer": a}) + "\n" for a in ANSWERS))
    (benchmark,) = find_benchmarks([str(tmp_path / "mine.jsonl")], tmp_path, DataConfig(path=""), 3)
    answers = [["7", "7", "8"], ["7", "7.0", "12"], ["", "", ""]]
    samples = [sample_of(i, answer, ANSWERS[i]) for i, group in enumerate(answers) for answer in group]
    samples[-1] = replace(samples[-1], result=Result(Verdict.INFRA_ERROR, None, 0.0))
    found = problem_figures(Experience(samples, [], 1.0, 1.0, 0, 0.0), benchmark.problems())
    assert [(one["id"], one["samples"], one["majority"], one["length_mean"]) for one in found] == [
        ("1", 3, 1.0, 2),
        ("2", 3, 0.0, 2),
        ("3", 2, 0.0, 2),
    ]
    assert [one["pass_rate"] for one in found] == pytest.approx([2 / 3, 1 / 3, 0])


def test_the_samples_are_the_papers_unless_told(tmp_path: Path) -> None:
    names = ["aime24", "math500", "livecodebench_v5", "livecodebench_v6", "mine.jsonl"]
    assert [one.samples for one in find_benchmarks(names, tmp_path, DataConfig(path=""), None)] == [64, 4, 8, 8, 1]
    assert [one.samples for one in find_benchmarks(names, tmp_path, DataConfig(path=""), 2)] == [2] * 5
    with pytest.raises(InputError, match="--benchmark: two of the name aime24; give each once"):
        find_benchmarks(["aime24", "aime24"], tmp_path, DataConfig(path=""), None)


def test_the_table_has_the_papers_rows_below() -> None:
    figures = {
        "aime24": {"samples_per_prompt": 64, "accuracy": 0.6914, "accuracy_error": 0.0712},
        "mine": {"samples_per_prompt": 1, "accuracy": 1.0, "accuracy_error": 0.0},
    }
    lines = markdown_table("my-7b", figures).splitlines()
    assert lines[0] == "| model | AIME24 avg@64 | mine avg@1 |"
    assert lines[2] == "| my-7b | 69.1 ± 7.1 | 100.0 ± 0.0 |"
    assert "| AceReason-Nemotron-7B (paper) | 69.0 |  |" in lines
    figures = {f"livecodebench_v{version}": figures["mine"] for version in (5, 6)}
    assert markdown_table("my-7b", figures).endswith("| AceReason-Nemotron-14B (paper) | 61.1 | 54.9 |\n")


# Code ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "days", "kept"),
    [
        ("livecodebench_v5", ["2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01"], [2, 3]),
        ("livecodebench_v6", ["2024-12-31", "2025-01-01", "2025-04-30", "2025-05-01"], [2, 3]),
    ],
)
def test_the_days_of_livecodebench(tmp_path: Path, name: str, days: list[str], kept: list[int]) -> None:
    rows = [lcb_row("abc1_a", day) | {"question_id": str(number)} for number, day in enumerate(days, start=1)]
    rows += [{"contest_date": "2023-05-07T00:00:00"}]  # not looked at
    for file in BENCHMARKS[name].files:
        write(tmp_path / file, [])
    write(tmp_path / BENCHMARKS[name].files[-1], rows)
    assert [problem.id for problem in load(name, tmp_path)] == [f"{name}/{number}" for number in kept]
    write(tmp_path / BENCHMARKS[name].files[-1], rows[:1] + rows[-1:])
    with pytest.raises(InputError, match=rf"test\d.jsonl: holds no problem of {name}$"):
        load(name, tmp_path)


def test_livecodebench_asks_as_the_paper_does_and_judges_by_all_tests(made: Path) -> None:
    problems = load("livecodebench_v5", made)
    assert [len(problem.tests or ()) for problem in problems] == [3, 3, 3]
    program, function, _ = [user_message(problem) for problem in problems]
    assert program.startswith("Multiply by 4.\n\nWrite Python code to solve the problem. ")
    assert "Function header:\n```\nclass Solution:\n    def triple(self, x: int) -> int:\n" in function


def test_humaneval_shows_its_docstring_and_supplies_what_comes_before(made: Path) -> None:
    mean, zero = load("humaneval", made)
    assert user_message(mean).startswith("Complete the function, so that it does what its docstring says.\n\n")
    assert f"Function header:\n```\n{MEAN[0].strip()}\n```\n\nPlease place" in user_message(mean)
    bare = ["def mean(x: List[float]): return sum(x) / len(x)", "def find_zero(xs): return -poly(xs, 0) / xs[1]"]
    assert score([mean, zero], [f"</think>\n```python\n{program}\n```" for program in bare]) == 1.0


def test_mbpp_shows_its_assertions(made: Path) -> None:
    pairs, its_sum, _ = load("mbpp", made)
    shown = "Write a function pairs. Your code should pass these tests:\n\n" + "\n".join(MBPP[1]["test_list"])
    assert user_message(pairs).startswith(f"{shown}\n\nWrite Python code ")
    assert (pairs.fn_name, its_sum.fn_name) == ("pairs", "sum")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "mbpp",
            {"test_list": None},
            "mbpp.jsonl: mbpp/2: column 'test_list' is None, not a list of texts; the line has",
        ),
        ("mbpp", {"test_list": []}, "column 'test_list' is [], not a list of texts"),
        ("mbpp", {"test_list": ["assert (("]}, "tests[0]: its input is not Python: SyntaxError: '(' was never closed"),
        ("mbpp", {"text": 5}, "column 'text' is 5, not text"),
        ("mbpp_plus", {"test": None}, "mbppplus.jsonl: mbpp_plus/2: column 'test' is None, not text"),
        ("mbpp_plus", {"test_imports": "import"}, "column 'test_imports' is 'import', not a list of texts"),
        ("humaneval", {"entry_point": None}, "humaneval/2: column 'entry_point' is None, not text; the line has ['can"),
        ("humaneval_plus", {"task_id": "HumanEval/0"}, "id 'HumanEval/0' is also an earlier row's"),
        ("livecodebench_v6", {"contest_date": None}, "column 'contest_date' is None, not YYYY-MM-DD"),
        ("livecodebench_v6", {"private_test_cases": "?"}, "a text that is neither JSON nor packed"),
    ],
)
def test_a_row_that_is_no_problem_is_named(made: Path, name: str, change: dict[str, Any], words: str) -> None:
    path = made / BENCHMARKS[name].files[-1]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [rows[0], rows[1] | change])
    with pytest.raises(InputError) as caught:
        load(name, made)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_problem_of_two_files_is_named(made: Path) -> None:
    write(made / "code_generation_lite/test5.jsonl", [lcb_row("3001")])
    with pytest.raises(InputError, match=r"test5.jsonl: livecodebench_v5/3001 is also in another file"):
        load("livecodebench_v5", made)


# The journal --------------------------------------------------------------------------------------------------------

PROMPTS = [[1, 2], [1, 2]]


def without_tokens(scored: ScoredSample) -> ScoredSample:
    return replace(scored, sample=scored.sample.without_tokens())


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    first, second = map(without_tokens, (sample_of(0, "7", "7"), sample_of(1, "8", "7")))
    lost = replace(second, result=Result(Verdict.INFRA_ERROR, None, 0.0))
    for rank, sample in enumerate((first, lost, second)):
        journal = EvaluationJournal(tmp_path / "journal", "asked", rank)
        journal.keep(sample)
        journal.close()
        journal.keep(lost)  # nothing any more
    (torn,) = (tmp_path / "journal").glob("rank_2_*")
    torn.write_text(torn.read_text() + '{"prompt_index": 0, "samp')
    (tmp_path / "journal" / "rank_7_empty.jsonl").touch()
    assert sorted(journal.read(PROMPTS), key=lambda sample: sample.prompt_index) == [first, second]
    with pytest.raises(InputError, match="holds samples of another model, benchmark or setting; remove "):
        EvaluationJournal(tmp_path / "journal", "asked otherwise", 0).read(PROMPTS)
    torn.write_text(torn.read_text() + "\n")
    with pytest.raises(InputError, match=r"rank_2_\w+.jsonl: damaged \(JSONDecodeError.*; remove it"):
        journal.read(PROMPTS)
    journal.remove()
    assert journal.read(PROMPTS) == []
