"""What each step leaves out, and what it must not: statements in the words of real ones."""

import time

import pytest

from megatron_rl.config.schema import Domain
from megatron_rl.curation.answers import LongAnswer, UnreadableAnswer
from megatron_rl.curation.duplicates import ExactDuplicates, NearDuplicates
from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.statements import Figure, Language, Length, MultiPart, MultipleChoice, Proof, TrueFalse
from megatron_rl.curation.step import Step
from megatron_rl.curation.steps import STEPS, make_step
from megatron_rl.curation.text import prose, words
from megatron_rl.data.problems import Problem

SUM = "Find the sum of all positive integers that divide 60."


def problem(statement: str, answer: str = "7", name: str = "p") -> Candidate:
    return Candidate(Problem(name, statement, Domain.MATH, answer, None, None, None, None), "source", {})


LEFT_OUT: list[tuple[Step, str]] = [
    (Length(), "Evaluate $|7-24i|$."),
    (Language(), "Soit $x$ un nombre réel tel que $x^2=2$. Trouver la valeur de x."),
    (Language(), "Ist $n$ eine natürliche Zahl, so bestimme man die Summe aller Teiler."),
    (Language(), "设 x 为实数, 求其最大值和最小值"),
    (MultiPart(), "Let $f(x)=x^2$. (a) Find $f(3)$. (b) Find the range of $f$."),
    (MultiPart(), "For a prime $p$:\n1. Determine $p+1$.\n2. Determine $p-1$."),
    (MultiPart(), "For the box find (a) the volume, (b) the surface."),
    (MultiPart(), "Part (a): how many are there? Part (b): what is their sum?"),
    (MultiPart(), "The circle $C$ passes through $A$.\n$(1)$ Find its equation.\n$(2)$ Find the value of $m$."),
    (MultiPart(), "Let $a$ be odd. (\u2160) Find $a$; (\u2161) Find $a^2$."),
    (MultiPart(), "Let $a$ be odd. (1)Find $a$. (2)Find $a^2$."),
    (MultiPart(), "Let $a$ be odd. \uff081\uff09 Find $a$. \uff082\uff09 Find $a^2$."),
    (MultiPart(), "Let $a$ be odd. ① Find $a$. ② Find $a^2$."),
    (MultipleChoice(), r"What is $1+1$? $\textbf{(A)}\ 1 \qquad \textbf{(B)}\ 2 \qquad \textbf{(C)}\ 3$"),
    (MultipleChoice(), "The sum is\nA. even\nB. divisible by 3\nC. prime"),
    (MultipleChoice(), "Which of the following numbers is the largest?"),
    (MultipleChoice(), r"The sum is \text{(A)} 1 \text{(B)} 2."),
    (TrueFalse(), "True or false: every even number above 2 is a sum of two primes."),
    (Proof(), "Prove that there are infinitely many primes."),
    (Proof(), "Let $n$ be odd. Show that $n^2-1$ is divisible by 8."),
    (Figure(), "What is the area of the shaded region shown in the figure?"),
    (Figure(), "[asy] draw((0,0)--(1,1)); [/asy] Find the length of the segment."),
    (Figure(), "In the diagram, $AB = 3$ and $BC = 4$. What is $AC$?"),
    (Figure(), "The graph of $y = f(x)$ is shown. Find $f(2)$."),
    (Figure(), "<image> What does the sequence print?"),
    (Figure(), "Two circles touch as shown. Find the radius of the small one."),
]
PASSED: list[tuple[Step, str]] = [
    (Length(), r"Compute $\sin 150^\circ$."),
    (Language(), "Let $a$ and $b$, for $x$ let $c$. Find $d$."),
    (Language(), "Express eleven in base $b$."),
    (MultiPart(), "Find the largest $n$ such that (i) $n$ is even; (ii) $n < 50$."),
    (MultiPart(), "What is the least such number?\na) Divided by 2 it leaves 1.\nb) Divided by 3 it leaves 2."),
    (MultiPart(), "1) The marksman chooses a column.\n2) He breaks its lowest target. In how many orders?"),
    (MultiPart(), "Compute $f(a)$ and $f(b)$ if $f(1) = 2$ and $f(2) = 4$."),
    (MultiPart(), "Let $f(1)F = 2$ and find $f(2)F$ (1)."),
    (MultipleChoice(), "[asy] dot(A); dot(B); dot(C); [/asy] Triangle $ABC$ has area 6. Find its height."),
    (MultipleChoice(), "Points $A$, $B$ and $C$ lie on a line. Find $AB$."),
    (TrueFalse(), SUM),
    (Proof(), "The records show that 60 of the animals are cats. How many are dogs?"),
    (Proof(), "A method that will prove useful is substitution. Find $x$ if $x+1=2$."),
    (Figure(), "How many four-figure numbers are there? Let $x$ be the number of them."),
    (Figure(), "Bob draws a picture and sells it at 20 dollars more than it cost. Find his profit."),
    (Figure(), "He buys action figures and still has 25 dollars left. What did the pictures cost?"),
    (Figure(), "Find the area of the figure bounded by the graphs of $y=x^2$ and $y=2x$."),
    (Figure(), "Let us figure out how many numbers divide 60."),
    (Figure(), "It can be shown that the sum is $m/n$. Find $m+n$."),
]


@pytest.mark.parametrize(("step", "statement"), LEFT_OUT)
def test_left_out(step: Step, statement: str) -> None:
    assert step.why_not(problem(statement))


@pytest.mark.parametrize(("step", "statement"), PASSED)
def test_passed(step: Step, statement: str) -> None:
    assert step.why_not(problem(statement)) is None


@pytest.mark.parametrize(
    ("step", "answer", "is_left_out"),
    [
        (MultipleChoice(), "B", False),  # the statement has no options
        (TrueFalse(), r"\text{Yes}", True),
        (TrueFalse(), "no", True),
        (TrueFalse(), "12", False),
        (LongAnswer(), "x" * 101, True),
        (LongAnswer(), "x" * 100, False),
        (UnreadableAnswer(), r"\frac{1}{", True),
        (UnreadableAnswer(), r"\frac{1}{2}", False),
        (UnreadableAnswer(), "proof", True),
        (UnreadableAnswer(), r"$\text{Not found.}$", True),
        (UnreadableAnswer(), "N/A", True),
        (UnreadableAnswer(), "waterproof", False),
        (UnreadableAnswer(), "n+a", False),
    ],
)
def test_answers(step: Step, answer: str, is_left_out: bool) -> None:
    assert bool(step.why_not(problem(SUM, answer))) == is_left_out


def test_options_in_small_letters_go_with_an_answer_that_is_one() -> None:
    statement = "The sum is\n(a) even\n(b) odd\n(c) prime"
    assert MultipleChoice().why_not(problem(statement, "b")) == "(a) (b) (c)"
    assert MultipleChoice().why_not(problem(statement, "7")) is None


@pytest.mark.parametrize(
    "form", ["A.$1$ B.$2$ C.$3$", "A\uff0e1 B\uff0e2 C\uff0e3", "$A$. 1 $B$. 2 $C$. 3", "**A** 1 **B** 2 **C** 3"]
)
def test_options_in_other_spellings_go_with_an_answer_that_is_a_letter(form: str) -> None:
    assert MultipleChoice().why_not(problem(f"The value is ( ) {form}", "$C$"))
    assert MultipleChoice().why_not(problem("Take the points A and B. C is the third. Which is next?", "D")) is None


LONG = [
    *("\n", "(a) ? ", "(a) find ", "1. what is\n", "part a ", "(A)(B)", "A. B. ", r"\text{A} ", r"\[", "$", "[asy]"),
    *("figure ", "shown ", "print any ", "multiple answers ", "absolute ", "if there are many "),
]


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"decontamination", "golden_solution", "difficulty"}))
def test_no_statement_takes_long(name: str) -> None:
    """Half a megabyte of what the patterns begin with."""
    step = make_step(name, {})
    begin = time.process_time()
    for piece in LONG:
        step.why_not(problem(piece * (500_000 // len(piece)), name=piece))
    assert time.process_time() - begin < 60  # of 17; they take a few seconds together


# Duplicates ---------------------------------------------------------------------------------------------------------

RABBITS = "A farmer has 12 rabbits and 7 hens in his yard, and each of them eats 3 carrots a day. How many in a week?"


def test_the_first_of_the_same_words_stays() -> None:
    step = ExactDuplicates()
    assert step.why_not(problem(SUM, name="first")) is None
    assert step.why_not(problem(SUM.upper().replace(" ", "  "), name="second")) == "as first"
    assert step.why_not(problem(SUM.replace("60", "61"), name="third")) is None
    assert step.why_not(problem("Solve $x^2+5x=6$.", name="plus")) is None
    assert step.why_not(problem("Solve $x^2-5x=6$.", name="minus")) is None
    assert step.why_not(problem("Solve $|x^2-5x|=6$.", name="absolute")) is None
    assert step.why_not(problem("Solve $x^2\u22125x≤6$.", name="below")) is None
    assert step.why_not(problem("Solve $x^2\u22125x≥6$.", name="above")) is None


@pytest.mark.parametrize(
    ("statement", "is_left_out"),
    [
        (RABBITS.replace("A farmer", "Farmer"), True),
        (RABBITS.replace("12", "13"), False),  # another problem
        ("A farmer has 12 cows; 7 of them eat 3 bales. How many are left?", False),
    ],
)
def test_near_duplicates(statement: str, is_left_out: bool) -> None:
    step = NearDuplicates()
    assert step.why_not(problem(RABBITS, name="first")) is None
    assert step.why_not(problem(statement, name="second")) == ("like first" if is_left_out else None)
    assert step.why_not(problem(statement, answer="8", name="third")) is None  # another reference


# Words --------------------------------------------------------------------------------------------------------------


def test_words_are_what_spaces_case_and_latex_leave() -> None:
    assert words(r"Let $X_1=\frac{1}{2}$.") == ["let", "x", "1", "frac", "1", "2"]
    assert words("ﬁve + Ⅷ = Straße") == ["five", "viii", "strasse"]
    assert words(" \n") == []


def test_prose_is_without_formulas_and_drawings() -> None:
    assert prose(r"Let $x \text{ even}$ be [asy] draw(A); [/asy] \textbf{odd} \[a=b\] c") == "Let be odd"
