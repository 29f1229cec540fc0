import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from math_hostile import HOSTILE

from verifiers.math import extract_answer, numeric, verify_math
from verifiers.math.compare import equivalent
from verifiers.math.nodes import Number, Symbol
from verifiers.math.parse import parse
from verifiers.math.points import sample_points
from verifiers.math.tokens import tokenize
from verifiers.verdict import Verdict

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
PAIRS = Path(__file__).parent / "math_pairs.txt"
HOSTILE_SECONDS = 5.0


def pairs() -> list[tuple[str, str, bool]]:
    found = []
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        if line[:1] in ("=", "!"):
            answer, _, reference = line[1:].partition("||")
            found.append((answer.strip(), reference.strip(), line[0] == "="))
    return found


def test_the_table_of_pairs_is_there() -> None:
    assert len(pairs()) >= 600


@pytest.mark.parametrize(("answer", "reference", "equal"), pairs())
def test_pair(answer: str, reference: str, equal: bool) -> None:
    result = verify_math(f"</think> so it is $\\boxed{{{answer}}}$.", reference)
    assert (result.verdict is Verdict.PASS) == equal, result


# Extraction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>hm</think> \boxed{5}", "5"),
        (r"\boxed{5}", None),
        (r"<think>\boxed{5}", None),
        (r"<think>\boxed{5}</think> five", None),
        (r"<think>\boxed{4}</think> \boxed{5}", "5"),
        (r"</think> \boxed{4} </think> \boxed{5}", "5"),
        (r"</think> \boxed{5} </think> none", None),
        (r"</think> \boxed{4}, no, \boxed{5}", "5"),
        (r"</think> \boxed{5} as asked in \boxed{}", "5"),
        (r"</think> \boxed{}", None),
        (r"</think> \boxed{ }", None),
        (r"</think> \boxed{4} and \boxed{5", "4"),
        (r"</think> \boxed{4 and \boxed{5}", "5"),
        (r"</think> \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"</think> \boxed{\{1,2\}}", r"\{1,2\}"),
        (r"</think> \boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"</think> \boxed {5}", "5"),
        (r"</think> \fbox{5}", "5"),
        (r"</think> \boxed 5", "5"),
        (r"</think> $\boxed 42$.", "42"),
        (r"</think> the box \boxed holds \boxed{5}", "5"),
        (r"</think> \boxed{a}}} \boxed{5}}", "5"),
        (r"</think> The answer is 5", None),
        ("", None),
        ("</think>", None),
    ],
)
def test_strict_extraction(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"<think>\boxed{5}</think> none", "5"),
        (r"\boxed{5} The answer is 6.", "5"),
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234\n", "1,234"),
        ("The answer is 18.", "18"),
        ("The answer is $18.", "$18"),
        ("The answer is 3.5 dollars.", "3.5 dollars"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("The answer is 4. No: the answer is 5.", "5"),
        ("**Answer:** 12", "12"),
        ("Answer: -3\nBye", "-3"),
        ("first 12, then 1,300.50 in all", "1,300.50"),
        ("it is x-3", "3"),
        ("it is -3", "-3"),
        ("nothing", None),
        ("", None),
    ],
)
def test_extraction_anywhere(response: str, answer: str | None) -> None:
    assert extract_answer(response, "anywhere") == answer


def test_unknown_extraction_is_refused() -> None:
    with pytest.raises(ValueError, match="'strict' or 'anywhere'"):
        verify_math("", "", "lenient")  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert verify_math("<think>5", "5").verdict is Verdict.NO_ANSWER
    assert verify_math(r"</think>\boxed{5}", "5").verdict is Verdict.PASS
    wrong = verify_math(r"</think>\boxed{6}", "5")
    assert (wrong.verdict, wrong.extracted, wrong.detail) == (Verdict.WRONG, "6", "expected 5")
    assert wrong.seconds > 0


# Properties ------------------------------------------------------------------------------------------------

integers = st.integers(-(10**12), 10**12)
nonzero = st.integers(1, 10**6)


def written(value: Fraction) -> list[str]:
    """A rational in the ways that models write it."""
    n, d = value.numerator, value.denominator
    sign = "-" if n < 0 else ""
    forms = [
        f"{n}/{d}",
        rf"\frac{{{n}}}{{{d}}}",
        rf"{sign}\dfrac{{{abs(n)}}}{{{d}}}",
        rf"$\frac{{{7 * n}}}{{{7 * d}}}$",
    ]
    if d == 1:
        forms += [f"{n}", f"{n}.0", f"{n:,}", rf"{n}\text{{ apples}}", f"x = {n}", rf"{100 * n}\%"]
    elif abs(n) > d:
        whole, rest = divmod(abs(n), d)
        forms.append(rf"{sign}{whole}\frac{{{rest}}}{{{d}}}")
    return forms


@given(integers, nonzero, st.data())
def test_a_rational_equals_itself_however_it_is_written(n: int, d: int, data: st.DataObject) -> None:
    forms = written(Fraction(n, d))
    first, second = data.draw(st.sampled_from(forms)), data.draw(st.sampled_from(forms))
    assert equivalent(first, second)


@given(integers, nonzero, integers, nonzero, st.data())
def test_different_rationals_differ(n: int, d: int, n2: int, d2: int, data: st.DataObject) -> None:
    first, second = Fraction(n, d), Fraction(n2, d2)
    equal = equivalent(data.draw(st.sampled_from(written(first))), data.draw(st.sampled_from(written(second))))
    assert equal == (first == second)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**9), max_value=10**9))
def test_the_last_digit_of_a_decimal_counts(value: object) -> None:
    text = f"{value:f}"
    other = text[:-1] + ("1" if text[-1] != "1" else "2")
    assert equivalent(text + "0", text)
    assert not equivalent(other, text)
    assert not equivalent(rf"\sqrt{{2}} + {other}", rf"\sqrt{{2}} + {text}")


x, y = sympy.symbols("x y")
small = st.integers(-9, 9)


@st.composite
def polynomials(draw: st.DrawFn) -> sympy.Expr:
    factors = [draw(small) * x + draw(small) * y + draw(small) for _ in range(draw(st.integers(1, 3)))]
    return sympy.Mul(*factors) + draw(small)


@settings(deadline=None, max_examples=60)
@given(polynomials(), st.integers(2, 9))
def test_an_expression_equals_its_expansion_and_no_other(polynomial: sympy.Expr, root: int) -> None:
    expression = polynomial + sympy.sqrt(root)
    reference = sympy.latex(sympy.expand(expression))
    assert equivalent(sympy.latex(expression), reference)
    assert equivalent(sympy.latex(sympy.factor(polynomial)) + rf"+ \sqrt{{{root}}}", reference)
    assert equivalent(str(expression), reference)
    for change in (1, x, y * x / 1000, sympy.Rational(1, 10**9)):
        assert not equivalent(sympy.latex(expression + change), reference)


def test_a_polynomial_that_vanishes_wherever_numbers_are_tried_is_not_zero() -> None:
    points = list(sample_points(["x"], Number(Fraction(10**12))))  # with larger numbers the points stay
    factors = "".join(rf"(x-\frac{{{p['x'].numerator}}}{{{p['x'].denominator}}})" for p in points)
    assert numeric.identical(parse(tokenize(f"x+{factors}")), Symbol("x"))
    assert not equivalent(f"x+{factors}", "x")


PIECES = (
    r"\frac \sqrt { } ( ) [ ] \{ \} | ^ _ + - * / , ; : = < > ! % $ . & \\ \left \right \cup \in \pm \infty \pi "
    r"\sin \log \begin{pmatrix} \end{pmatrix} \text{cm} \text{and} ^\circ \boxed 0 1 2 12 1.5 1,000 x y i e"
)
OPERATORS = (
    r"{}+{} {}-{} {}*{} {}/{} ({})^{{{}}} \sqrt[{}]{{{}}} \frac{{{}}}{{{}}} \binom{{{}}}{{{}}} \log_{{{}}}({}) "
    r"\max({},{}) \min({},{}) \gcd({},{}) ({},{}) \{{{},{}\}} {}={} {}<{} [{},{}) \sin({}) \arccos({}) \cot({}) "
    r"\ln({}) ({})! |{}| \lfloor{{}}{}\rfloor \pm{{}}{} {}\% {}^\circ"
)
LATEX = st.lists(st.sampled_from(PIECES.split()), max_size=25).map("".join)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(
            st.sampled_from(["0", "1", "-1", "2", "7", "0.5", "x", "n", "i", "e", r"\pi", r"\infty", "10^{300}"])
        )
    operator = draw(st.sampled_from(OPERATORS.split()))
    return operator.format(draw(expressions(depth - 1)), draw(expressions(depth - 1)))


@settings(deadline=None, max_examples=150)
@given(expressions(), expressions())
def test_no_expression_raises(answer: str, reference: str) -> None:
    assert isinstance(equivalent(answer, reference), bool)
    equivalent(f"{answer} + 0", answer)


@settings(deadline=None, max_examples=400)
@given(st.one_of(LATEX, st.text(max_size=40)), st.one_of(LATEX, st.text(max_size=40)))
def test_no_text_raises_and_every_text_equals_itself(answer: str, reference: str) -> None:
    assert isinstance(equivalent(answer, reference), bool)
    assert equivalent(answer, answer)


def test_canonical_tokens_join_spellings() -> None:
    assert tokenize(r"\dfrac{1}{2}") == tokenize(r"\tfrac {1} {2}")
    assert tokenize(r"\left( 3 \right)") == tokenize("(3)")
    assert tokenize("1 000") == tokenize("1000")


# Hostile answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [r"\frac{1}{2}", r"x^2+\sqrt{2}", r"\{1,\sqrt{2}\}"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong_within_their_time(name: str, reference: str) -> None:
    start = time.process_time()
    assert not equivalent(HOSTILE[name], reference)
    assert time.process_time() - start < HOSTILE_SECONDS


@pytest.mark.parametrize("name", ["tower of powers", "factorial", "deep fractions", "many digits", "long sum", "sum"])
def test_what_cannot_be_evaluated_still_equals_itself(name: str) -> None:
    spaced = HOSTILE[name].replace("+", " + ")
    assert equivalent(spaced, HOSTILE[name])


@pytest.mark.parametrize(
    "response",
    [
        "</think>" + r"\boxed{" * 100_000,
        "</think>" + r"\boxed{5}" + "}" * 1_000_000,
        r"\boxed{" * 50_000 + "}" * 50_000 + "</think>",
        "</think>" * 100_000,
        "</think>" + "answer is " * 100_000,
        "</think>" + "1," * 500_000,
        "</think>" + "####" * 250_000,
        "</think>" + "$" * 1_000_000,
        "</think>" + " " * 1_000_000 + r"\boxed{5}",
    ],
)
@pytest.mark.parametrize("mode", ["strict", "anywhere"])
def test_extraction_takes_linear_time(response: str, mode: str) -> None:
    start = time.process_time()
    extract_answer(response, mode)  # type: ignore[arg-type]
    assert time.process_time() - start < HOSTILE_SECONDS


@pytest.fixture
def eager_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_switching")
def test_threads_do_not_disturb_each_other() -> None:
    failures = []

    def work(exponents: range) -> None:
        for i in exponents:
            if not equivalent(rf"\sqrt{{{8 * i * i}}}", rf"{2 * i}\sqrt{{2}}"):
                failures.append(i)
            if not equivalent(rf"\sqrt{{8}}+10^{{-{i}}}", rf"2\sqrt{{2}}+10^{{-{i}}}"):
                failures.append(i)
            if equivalent(rf"\sqrt{{2}}+10^{{-{i}}}", r"\sqrt{2}"):
                failures.append(-i)

    threads = [threading.Thread(target=work, args=[order]) for order in (range(1, 40), range(39, 0, -1)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_importing_is_light() -> None:
    code = "import sys, verifiers.math, verifiers.pool; print({'sympy', 'mpmath', 'torch'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "set()"


# Public data -----------------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"public datasets are not in {DATA}")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_every_gsm8k_answer_passes_against_itself(name: str) -> None:
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows(name)]
    assert len(golds) > 1000
    assert [g for g in golds if verify_math(rf"</think> \boxed{{{g}}}", g).verdict is not Verdict.PASS] == []
    assert [g for g in golds if verify_math(rf"</think> \boxed{{{g}1}}", g).verdict is not Verdict.WRONG] == []


@needs_data
def test_every_math500_solution_passes() -> None:
    failed = [r for r in rows("math500_test.jsonl") if verify_math(f"</think>{r['solution']}", r["answer"]).reward == 0]
    assert failed == []


@needs_data
@pytest.mark.parametrize("name", ["aime24.jsonl", "aime25.jsonl"])
def test_every_aime_solution_passes(name: str) -> None:
    solved = [row for row in rows(name) if "\\boxed" in row["reference_solution"]]
    assert len(solved) > 25
    for row in solved:
        assert verify_math(f"</think>{row['reference_solution']}", row["expected_answer"]).reward == 1.0, row


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_every_gsm8k_solution_passes(name: str) -> None:
    golds = [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows(name)]
    assert [g for solution, g in golds if verify_math(solution, g, "anywhere").verdict is not Verdict.PASS] == []


def bare(answer: str) -> list[str]:
    """An answer without what may be left out: layout, its name, unit, base and brackets; lists in one order."""
    text = re.sub(r"\\!|\\left|\\right|\\\$|\^\\circ|\\mbox\{.*|_\{?\d+\}?$|^x=|\s|[(){}]", "", answer)
    return sorted(re.sub(r"(?<=\d),(?=\d{3})", "", text).split(","))


@needs_data
def test_exchanged_answers_never_pass() -> None:
    answers = [row["answer"] for row in rows("math500_test.jsonl")]
    answers += [str(row["expected_answer"]) for name in ("aime24.jsonl", "aime25.jsonl") for row in rows(name)]
    different = list(dict.fromkeys(answers))
    assert len(different) > 300
    passed = [pair for pair in itertools.combinations(different, 2) if equivalent(*pair)]
    assert [pair for pair in passed if bare(pair[0]) != bare(pair[1])] == [(r"\pi", r"180^\circ")]
    assert 10 < len(passed) < 20


# The rules as documented ----------------------------------------------------------------------------------


def documented() -> list[tuple[str, str, bool]]:
    text = (ROOT / "docs" / "math_verifier.md").read_text(encoding="utf-8")
    table = text.partition("| rule | equal | not equal |")[2].partition("\n\n")[0]
    examples = []
    for row in table.splitlines():
        cells = row.split(" | ")
        for cell, equal in zip(cells[1:], (True, False), strict=False):
            examples += [(*pair, equal) for pair in re.findall(r"`([^`]+)` for `([^`]+)`", cell)]
    return examples


def test_the_table_of_rules_is_there() -> None:
    assert len(documented()) > 90
    assert sum(equal for _, _, equal in documented()) > 50


@pytest.mark.parametrize(("answer", "reference", "equal"), documented())
def test_rule(answer: str, reference: str, equal: bool) -> None:
    assert equivalent(answer, reference) == equal
