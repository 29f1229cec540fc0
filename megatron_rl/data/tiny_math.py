"""The tiny world's math: sums and differences of two-digit numbers, written down quickly or digit by digit."""

import random
from dataclasses import dataclass

PHRASES = {
    "sum": ("What is {0} + {1}?", "Add {0} and {1}."),
    "difference": ("What is {0} - {1}?", "Take {1} from {0}."),
}


@dataclass(frozen=True, slots=True)
class MathProblem:
    """Arithmetic on two numbers from 10 to 99; a difference is never negative."""

    kind: str
    first: int
    second: int
    phrase: int

    @property
    def meaning(self) -> tuple[str, int, int]:
        """Equal for two problems that ask the same: wording and the order of summands do not count."""
        if self.kind == "difference":
            return self.kind, self.first, self.second
        return self.kind, min(self.first, self.second), max(self.first, self.second)

    @property
    def question(self) -> str:
        """The problem in words."""
        return PHRASES[self.kind][self.phrase].format(self.first, self.second)

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.first + self.second if self.kind == "sum" else self.first - self.second

    def response(self, careful: bool) -> str:
        """A right response that states the result at once or, `careful`, works through ones and tens."""
        sign = "+" if self.kind == "sum" else "-"
        reasoning = self._digits() if careful else f"{self.first}{sign}{self.second}={self.answer}"
        return f"<think>\n{reasoning}\n</think>\n\n\\boxed{{{self.answer}}}"

    def _digits(self) -> str:
        tens, ones = divmod(self.first, 10)
        other_tens, other_ones = divmod(self.second, 10)
        if self.kind == "sum":
            carry, low = divmod(ones + other_ones, 10)
            high = tens + other_tens + carry
            return f"{ones}+{other_ones}={10 * carry + low} {tens}+{other_tens}+{carry}={high}"
        borrow = int(ones < other_ones)
        low, high = ones - other_ones + 10 * borrow, tens - other_tens - borrow
        return f"{ones}-{other_ones}={low} {tens}-{other_tens}-{borrow}={high}"


def draw_math(rng: random.Random) -> MathProblem:
    """A random problem."""
    kind = rng.choice(list(PHRASES))
    first, second = rng.randint(10, 99), rng.randint(10, 99)
    if kind == "difference" and first < second:
        first, second = second, first
    return MathProblem(kind, first, second, rng.randrange(len(PHRASES[kind])))
