"""The tiny world's math: chains of sums and differences of digits, answered at once or worked out step by step."""

import random
from dataclasses import dataclass
from itertools import accumulate, pairwise

TERMS = 5
PHRASES = ("What is {}?", "Work out {}.")


@dataclass(frozen=True, slots=True)
class MathProblem:
    """A chain such as 3+4-2+1-5, whose partial results are all single digits.

    Attributes:
        terms: signed, each from 1 to 9 in size.
        phrase: index into `PHRASES`.
    """

    terms: tuple[int, ...]
    phrase: int

    @property
    def meaning(self) -> tuple[int, ...]:
        """Equal for two problems that ask the same: wording and order do not count."""
        return tuple(sorted(self.terms))

    @property
    def question(self) -> str:
        """The problem in words."""
        return PHRASES[self.phrase].format(self._chain)

    @property
    def answer(self) -> int:
        """The right answer."""
        return sum(self.terms)

    def response(self, careful: bool) -> str:
        """A right response that states the result at once or, `careful`, works it out step by step."""
        steps = zip(pairwise(accumulate(self.terms)), self.terms[1:], strict=True)
        worked_out = " ".join(f"{before}{term:+}={after}" for (before, after), term in steps)
        reasoning = worked_out if careful else f"{self._chain}={self.answer}"
        return f"<think>\n{reasoning}\n</think>\n\n\\boxed{{{self.answer}}}"

    @property
    def _chain(self) -> str:
        return f"{self.terms[0]}" + "".join(f"{term:+}" for term in self.terms[1:])


def draw_math(rng: random.Random) -> MathProblem:
    """A random problem."""
    terms = [rng.randint(1, 9)]
    while len(terms) < TERMS:
        total = sum(terms)
        terms.append(rng.choice([after for after in range(10) if after != total]) - total)
    return MathProblem(tuple(terms), rng.randrange(len(PHRASES)))
