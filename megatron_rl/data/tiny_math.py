"""The tiny world's math: mental arithmetic, with the quick and the careful way to write it down."""

import random
from collections.abc import Callable
from dataclasses import dataclass

PHRASES = {
    "sum": ("What is {0} + {1}?", "Add {0} and {1}.", "Ann has {0} coins and gets {1} more. How many has she now?"),
    "difference": ("What is {0} - {1}?", "Take {1} from {0}.", "Ann has {0} coins and gives {1} away. How many are left?"),
    "product": ("What is {0} * {1}?", "Multiply {0} by {1}.", "{0} bags hold {1} coins each. How many in all?"),
    "sum of three": ("What is {0} + {1} + {2}?", "Add {0}, {1} and {2}."),
}
QUICK, CAREFUL = "quick", "careful"


@dataclass(frozen=True, slots=True)
class MathProblem:
    """Arithmetic on non-negative numbers below 100. `numbers` are in the order in which the question names them."""

    kind: str
    numbers: tuple[int, ...]
    phrase: int

    @property
    def meaning(self) -> tuple[str, tuple[int, ...]]:
        """Equal for two problems that ask the same: wording and the order of summands and factors do not count."""
        ordered = self.kind == "difference"
        return self.kind, self.numbers if ordered else tuple(sorted(self.numbers))

    @property
    def question(self) -> str:
        """The problem in words."""
        return PHRASES[self.kind][self.phrase].format(*self.numbers)

    @property
    def answer(self) -> int:
        """The right answer."""
        first, *rest = self.numbers
        if self.kind == "product":
            return first * rest[0]
        if self.kind == "difference":
            return first - rest[0]
        return first + sum(rest)

    def response(self, style: str) -> str:
        """A right response: QUICK states the result at once, CAREFUL works through ones and tens."""
        sign = {"difference": "-", "product": "*"}.get(self.kind, "+")
        steps = f"{sign.join(map(str, self.numbers))}={self.answer}" if style == QUICK else _DIGITS[self.kind](self.numbers)
        return f"<think>\n{steps}\n</think>\n\n\\boxed{{{self.answer}}}"


def draw_math(kind: str, rng: random.Random) -> MathProblem:
    """A random problem of `kind`."""
    return MathProblem(kind, _NUMBERS[kind](rng), rng.randrange(len(PHRASES[kind])))


def _two_digits(rng: random.Random, last: int = 99) -> int:
    return rng.randint(10, last)


def _descending_pair(rng: random.Random) -> tuple[int, int]:
    smaller, larger = sorted(rng.sample(range(10, 100), 2))
    return larger, smaller


def _three_below_a_hundred(rng: random.Random) -> tuple[int, int, int]:
    while True:
        numbers = (_two_digits(rng, 79), _two_digits(rng, 79), _two_digits(rng, 79))
        if sum(numbers) < 100:
            return numbers


_NUMBERS: dict[str, Callable[[random.Random], tuple[int, ...]]] = {
    "sum": lambda rng: (_two_digits(rng), _two_digits(rng)),
    "difference": _descending_pair,
    "product": lambda rng: (rng.randint(2, 9), _two_digits(rng)),
    "sum of three": _three_below_a_hundred,
}


def _add_digits(numbers: tuple[int, ...]) -> str:
    ones = [number % 10 for number in numbers]
    tens = [number // 10 for number in numbers]
    carry = sum(ones) // 10
    if carry:
        tens.append(carry)
    return f"ones {_equation(ones)} tens {_equation(tens)}"


def _subtract_digits(numbers: tuple[int, ...]) -> str:
    larger, smaller = numbers
    borrow = larger % 10 < smaller % 10
    ones = f"{larger % 10 + 10 * borrow}-{smaller % 10}={larger % 10 + 10 * borrow - smaller % 10}"
    tens = f"{larger // 10}-{smaller // 10}{'-1' if borrow else ''}={larger // 10 - smaller // 10 - borrow}"
    return f"ones {ones} tens {tens}"


def _multiply_digits(numbers: tuple[int, ...]) -> str:
    factor, number = numbers
    ones, tens = factor * (number % 10), factor * (number // 10)
    carry = ones // 10
    return f"ones {factor}*{number % 10}={ones} tens {factor}*{number // 10}+{carry}={tens + carry}"


def _equation(summands: list[int]) -> str:
    return f"{'+'.join(map(str, summands))}={sum(summands)}"


_DIGITS = {
    "sum": _add_digits,
    "difference": _subtract_digits,
    "product": _multiply_digits,
    "sum of three": _add_digits,
}
