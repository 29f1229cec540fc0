"""A problem is contaminated if, and only if, it shares a run of n words with a benchmark."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.config.schema import Domain
from megatron_rl.curation.decontamination import Decontamination, NgramIndex
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.text import words
from megatron_rl.data.problems import Problem
from megatron_rl.errors import InputError

# Few different words, so that runs of them meet.
texts = st.lists(st.sampled_from("abc"), max_size=40).map(" ".join)


def index_of(size: int, *statements: str) -> NgramIndex:
    index = NgramIndex(size)
    for number, statement in enumerate(statements):
        index.add("benchmark", str(number), statement)
    return index


def by_definition(size: int, text: str, statements: list[str]) -> bool:
    """Every run of the text against every run of every benchmark."""
    found = words(text)
    for statement in map(words, statements):
        if statement and len(statement) < size and statement == found:
            return True
        runs = [statement[i : i + size] for i in range(len(statement) - size + 1)]
        if any(found[i : i + size] in runs for i in range(len(found) - size + 1)):
            return True
    return False


@given(size=st.integers(1, 15), text=texts, statements=st.lists(texts, max_size=3))
def test_it_is_found_if_and_only_if_a_run_is_shared(size: int, text: str, statements: list[str]) -> None:
    match = index_of(size, *statements).match(text)
    assert (match is not None) == by_definition(size, text, statements)
    if match is not None:
        assert f" {' '.join(match.words)} " in f" {' '.join(words(text))} "
        assert f" {' '.join(match.words)} " in f" {' '.join(words(statements[int(match.problem)]))} "


# Planted ------------------------------------------------------------------------------------------------------------

RNG = random.Random(7)
VOCABULARY = ["".join(RNG.choices("aeioubcdfglmnprst", k=RNG.randint(2, 8))) for _ in range(3000)]


def statement_of(count: int) -> str:
    """Words, a number every seventh, and some LaTeX."""
    found = [str(RNG.randint(2, 999)) if i % 7 == 3 else RNG.choice(VOCABULARY) for i in range(count)]
    return " ".join(found[:5]) + rf" $\frac{{{found[5]}}}{{{found[6]}}}$, " + " ".join(found[7:]) + "?"


BENCHMARK = [statement_of(RNG.randint(12, 60)) for _ in range(30)]


def other_numbers(statement: str) -> str:
    """The same problem with other numbers: no run of 9 words is without one of them, but of 6 words some are."""
    return " ".join(str(int(w) + 1) if w.isdigit() else w for w in words(statement))


@pytest.mark.parametrize("statement", BENCHMARK)
def test_planted_problems_are_caught_or_passed_as_the_rule_says(statement: str) -> None:
    nine, six = index_of(9, *BENCHMARK), index_of(6, *BENCHMARK)
    found = words(statement)
    around = statement_of(30), statement_of(20)
    assert nine.match(statement)
    assert nine.match(f"{around[0]} {statement} {around[1]}")
    assert nine.match("  ".join(statement.upper().split()).replace(",", " ;\n"))  # other spaces, case and punctuation
    assert nine.match(" ".join(["pray", *found[1:-1], "now"]))  # other words at the edges
    assert nine.match(" ".join(found[:9]))
    assert nine.match(" ".join(found[:8])) is None
    assert nine.match(other_numbers(statement)) is None
    assert six.match(other_numbers(statement))
    assert nine.match(around[0]) is None


def test_a_short_problem_is_found_only_by_itself() -> None:
    index = index_of(9, r"Compute $\tan 60^\circ$.")
    assert index.match(r"compute \(\tan{60}^{\circ}\)")
    assert index.match(r"Compute $\tan 60^\circ$ and then the sum of all of its digits in base two.") is None


# The step -----------------------------------------------------------------------------------------------------------


def problem(statement: str) -> Candidate:
    return Candidate(Problem("p", statement, Domain.MATH, "1", None, None, None, None), "source", {})


def test_the_reason_names_benchmark_problem_and_words(tmp_path: Path) -> None:
    path = tmp_path / "aime.jsonl"
    path.write_text(json.dumps({"id": "aime-7", "problem": "one two three four five"}) + "\n")
    step = Decontamination(3, {"aime": SourceConfig(path=str(path), prompt_key="problem")})
    assert step.why_not(problem("Zero, one? Two; three: four!")) == "aime aime-7: one two three"
    assert step.why_not(problem("one two and three four")) is None


def test_a_benchmark_without_the_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aime.jsonl"
    path.write_text('{"question": "one two"}\n')
    with pytest.raises(InputError, match=r"aime.jsonl:1: no text in column 'problem'"):
        Decontamination(3, {"aime": SourceConfig(path=str(path), prompt_key="problem")})
