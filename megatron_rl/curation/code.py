"""Steps that look at a code problem: whether its tests can tell a right program from a wrong one."""

from dataclasses import dataclass
from datetime import date

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.statements import Worded, any_case
from megatron_rl.curation.step import Step
from megatron_rl.data.problems import Problem
from megatron_rl.errors import RunStopped
from verifiers.pool import VerifierPool
from verifiers.tasks import CodeTask
from verifiers.verdict import Verdict


@dataclass
class SpecialJudge(Worded):
    """Statements with more than one right output, of which the tests hold one."""

    PATTERNS = any_case(
        r"\b(?:print|output|return|find|report)\b[^.]{0,40}\bany (?:one )?(?:of|valid|such|correct|possible)\b",
        r"\b(?:any|one) (?:valid|correct) (?:answer|solution|output|order)\b",
        r"\bif there (?:are|is) (?:multiple|several|many|more than one)\b[^.]{0,60}\b(?:any|one of)\b",
        r"\bin case (?:of|there are) (?:multiple|several|many)\b[^.]{0,60}\bany\b",
        r"\bany (?:one |answer |solution |output |of them )?(?:is|will be) accepted\b",
        r"(?<!not )(?<!n't )\b(?:print|output) any\b",
        r"\b(?:multiple|several) (?:answers|solutions|outputs) (?:exist|are possible)\b(?![^.]{0,30}\bthe one\b)",
        r"\b(?:print|output|return|list|give)\b[^.]{0,80}\bin any order\b",
        r"\b(?:absolute|relative) (?:or (?:absolute|relative) )?error\b",
        r"\bwithin\b[^.]{0,20}\b10\s*\^?\s*\{?\s*[-\u2212]",
        r"\bspecial (?:judge|checker)\b",
    )


@dataclass
class Interactive(Worded):
    """Problems in which the program talks with the judge."""

    PATTERNS = any_case(
        r"\binteractive (?:problem|task)\b", r"\bflush (?:the )?(?:output|stdout|standard output)\b", r"\binteractor\b"
    )


@dataclass
class WeakTests(Step):
    """Tests that are too few, or that a program passes which always prints the same."""

    min_tests: int = 5

    def why_not(self, candidate: Candidate) -> str | None:
        tests = candidate.problem.tests or ()
        if len(tests) < self.min_tests:
            return f"{len(tests)} of {self.min_tests} tests"
        outputs = {tuple(test["output"].split()) for test in tests}
        return "every test has the same output" if len(outputs) == 1 else None


@dataclass
class GoldenSolution(Step):
    """Problems of whose own solutions none passes their tests, or that have none."""

    timeout_seconds: float = 6.0
    """Per test."""
    max_solutions: int = 3
    """So many are tried, in their order."""

    def __post_init__(self) -> None:
        self._pool = VerifierPool(1)

    def why_not(self, candidate: Candidate) -> str | None:
        reason: str | None = "no solution"
        for solution in candidate.solutions[: self.max_solutions]:
            reason = self._why_wrong(candidate.problem, solution)
            if reason is None:
                break
        return reason

    def _why_wrong(self, problem: Problem, solution: str) -> str | None:
        task = CodeTask(
            f"</think>\n```python\n{solution}\n```",
            problem.tests or (),
            fn_name=problem.fn_name,
            starter_code=problem.starter_code,
            timeout=self.timeout_seconds,
        )
        result = self._pool.submit(task).result()
        if result.verdict is Verdict.INFRA_ERROR:
            raise RunStopped(f"{problem.id}: its solution could not be run: {result.detail}; see to the sandbox")
        return None if result.verdict is Verdict.PASS else f"{result.verdict.value}: {result.detail}"

    def close(self) -> None:
        """End the sandbox."""
        self._pool.close()


@dataclass
class DatedAfter(Step):
    """Problems that were published after a day: a benchmark may hold them."""

    key: str = "date"
    """In `meta`; begins with YYYY-MM-DD."""
    last: str = "2024-08-01"
    """The last day that stays (arXiv 2505.16400, section 3.2)."""

    def __post_init__(self) -> None:
        self._last = date.fromisoformat(self.last)

    def why_not(self, candidate: Candidate) -> str | None:
        if self.key not in candidate.meta:
            return f"no {self.key}; is it among the source's meta_keys?"
        try:
            day = date.fromisoformat(str(candidate.meta[self.key])[:10])
        except ValueError:
            return f"{self.key} is {candidate.meta[self.key]!r}, not YYYY-MM-DD"
        return str(day) if day > self._last else None
