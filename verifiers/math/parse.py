"""Canonical tokens to a tree, by recursive descent. Nothing is evaluated and no name is ever looked up in Python."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from verifiers.math.atoms import CLOSERS, PAIRS, Atoms
from verifiers.math.cursor import END
from verifiers.math.exact import rational
from verifiers.math.literals import mixed_number, read_number
from verifiers.math.nodes import (
    MINUS_ONE,
    Apply,
    Group,
    Node,
    Number,
    Quantity,
    Relation,
    Symbol,
    Union,
    Unreadable,
    add,
    invert,
    listed,
    multiply,
    negate,
    size,
)
from verifiers.math.spelling import DOMAINS, MULTIPLES, NO_UNITS
from verifiers.math.tokens import CACHED, Kind, Token
from verifiers.math.units import canonical_unit

MAX_FILLED = 100
MAX_SIZE = 4_000  # parts of the tree, with sums and products written out
MAX_TOKENS = 1_500

_RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "~", "in", "equiv"))
_NOT_FACTORS = CLOSERS | _RELATIONS | {"cup", "setminus", "pm", "mp", "over", "choose", "mod"}
_MOD = Token(Kind.COMMAND, "mod")
_ENDS_OF_FACTORS = frozenset(("!", ")", "]", "}"))  # a number may follow: 2!3!
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}


@lru_cache(maxsize=CACHED)
def parse(tokens: tuple[Token, ...]) -> Node:
    """The tree of a whole answer.

    Raises Unreadable if the tokens are no expression, or too many, or nested too deeply.
    """
    if len(tokens) > MAX_TOKENS:
        raise Unreadable("too many tokens")
    parser = _Parser(tokens)
    items = parser.listing()
    if parser.peek is not END:
        raise Unreadable(f"unexpected {parser.peek.text!r}")
    tree = listed(items)
    if size(tree) > MAX_SIZE:
        raise Unreadable("too large")
    return tree


class _Parser(Atoms):
    # Lists, relations and sets -------------------------------------------------------------------------

    def listing(self) -> list[Node]:
        """Items between commas, semicolons, "and" and "or"; at least one."""
        items, gap = [self.relation()], 0
        while self.accept(",", ";", "\\\\") or (self.peek.text == "(" and self.at_condition()):
            while self.accept(",", ";", "\\\\"):  # "1, 2, and 3"
                pass
            if self.peek is END or self.peek.text in CLOSERS:
                break
            if self.accept("dots"):
                gap = len(items)
                continue
            item = self.relation()
            match items[0]:
                case Relation(operators=("!=",), sides=(name, _)) if not isinstance(item, Relation):
                    item = Relation((name, item), ("!=",))  # "x != 0, 1"
            items.append(item)
        return _filled(items, gap) if gap else items

    def relation(self) -> Node:
        self.accept("=", "~")  # the left side was left out
        sides, operators = [self.union()], []
        while operator := self.accept(*_RELATIONS):
            operators.append(operator)
            sides.append(self.union())
            if operator == "equiv" or self.peek == _MOD:
                return self.congruence(sides)
        if self.accept("mod"):
            modulus = self.argument(whole_number=True)
            if isinstance(sides[0], Number):
                value = rational(modulus)
                if value is None:
                    raise Unreadable("a modulus that is no number")
                return Quantity(sides[0], f"mod {value}")
            return Apply("call", (Symbol("mod"), sides[0], modulus))
        return Relation(tuple(sides), tuple(operators)) if operators else sides[0]

    def congruence(self, sides: list[Node]) -> Node:
        r"""After `x \equiv 3`: `\pmod 7`, or `(\bmod 7)`."""
        bracket = self.accept("(")
        if not self.accept("mod"):
            raise Unreadable("a congruence without modulus")
        modulus = self.argument(whole_number=True)
        if bracket:
            self.expect(")")
        return Relation((*sides, modulus), ("equiv", "mod"))

    def union(self) -> Node:
        parts = [self.set_difference()]
        while self.accept("cup"):
            parts.append(self.set_difference())
        return Union(tuple(parts)) if len(parts) > 1 else parts[0]

    def set_difference(self) -> Node:
        node = self.ratio()
        return Apply("setminus", (node, self.ratio())) if self.accept("setminus") else node

    def ratio(self) -> Node:
        parts = [self.sum()]
        if self.accept("choose"):
            return Apply("binom", (parts[0], self.sum()))
        while self.accept(":", "over"):
            parts.append(self.sum())
        if len(parts) == 2:
            return multiply([parts[0], invert(parts[1])])
        return Group(":", tuple(parts), ":") if len(parts) > 1 else parts[0]

    # Arithmetic ----------------------------------------------------------------------------------------

    def sum(self) -> Node:
        terms = [self.signed(self.product)]
        while sign := self.accept("+", "-", "pm", "mp"):
            terms.append(_with_sign(sign, self.signed(self.product)))
        last = terms[-1]
        if isinstance(last, Quantity) and not any(isinstance(term, Quantity) for term in terms[:-1]):
            return Quantity(add([*terms[:-1], last.value]), last.unit)
        return add(terms)

    def signed(self, operand: Callable[[], Node]) -> Node:
        signs = []
        while sign := self.accept("+", "-", "pm", "mp"):
            signs.append(sign)
            if len(signs) > 4:
                raise Unreadable("too many signs")
        node = operand()
        for sign in reversed(signs):
            node = _with_sign(sign, node)
        return node

    def product(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.accept("*"):
                factors.append(self.signed(self.factor))
            elif self.accept("/"):
                divisor = self.signed(self.factor)
                if isinstance(divisor, Quantity) and not any(isinstance(factor, Quantity) for factor in factors):
                    unit = divisor.unit  # 5/12 radians: that of the whole
                    return Quantity(multiply([*factors, invert(divisor.value)]), unit)
                factors.append(invert(divisor))
            elif not self.starts_factor():
                break
            elif self.peek.kind is Kind.NUMBER and isinstance(factors[-1], Quantity) and factors[-1].unit:
                return add([_product_of_quantities(factors), self.product()])  # 1 hour 30 minutes
            elif self.peek.kind is Kind.NUMBER and not self.may_precede_number():
                factors[-1] = self.spaced_mixed_number(factors[-1])
            else:
                factors.append(self.factor())
        return _product_of_quantities(factors)

    def spaced_mixed_number(self, whole: Node) -> Node:
        """`1 4/5`: two numbers in a row mean nothing else."""
        numerator = read_number(self.next().text)
        self.expect("/")
        if self.peek.kind is not Kind.NUMBER:
            raise Unreadable("two numbers in a row")
        mixed = mixed_number(whole, numerator, read_number(self.next().text))
        if mixed is None:
            raise Unreadable("two numbers in a row")
        return mixed

    def at_condition(self) -> bool:
        r"""At `(k \in \mathbb{Z})` after what it is a condition of."""
        return [token.text for token in self.tokens[self.at + 2 : self.at + 3]] == ["in"]

    def may_precede_number(self) -> bool:
        """Whether the number that follows multiplies what was before it, as in `2!3!` and `n2^n`."""
        last, after = self.tokens[self.at - 1], self.tokens[self.at + 1 : self.at + 2]
        return last.text in _ENDS_OF_FACTORS or (last.kind is Kind.LETTER and bool(after) and after[0].text == "^")

    def starts_factor(self) -> bool:
        token = self.peek
        if token is END:
            return False
        if token.kind is Kind.MARK:
            if token.text == "(" and (self.at_condition() or self.tokens[self.at + 1 : self.at + 2] == (_MOD,)):
                return False
            return token.text in PAIRS or token.text in ("$", "|left") or (token.text == "|" and not self.bars)
        return token.text not in _NOT_FACTORS and not token.text.startswith("end ")

    def factor(self) -> Node:
        """An atom with what follows it: powers, factorials, percent signs, degrees, units."""
        self.enter()
        integer = self.peek.kind is Kind.NUMBER and self.peek.text.isdigit()
        node = self.atom()
        if integer and isinstance(node, Number):
            node = self.mixed_fraction(node) or node
        while True:
            if self.accept("^"):
                node = self.degrees(node) or self.power(node)
            elif self.accept("circ"):
                node = self.temperature(node) or Apply("deg", (node,))
            elif self.accept("!"):
                node = Apply("!!" if self.accept("!") else "!", (node,))
            elif self.accept("%"):
                node = multiply([node, Number(Fraction(1, 100))])
            elif self.peek.kind is Kind.WORD or self.at_unit_fraction():
                node = self.unit(node)
            else:
                break
        self.depth -= 1
        return node

    def mixed_fraction(self, whole: Number) -> Number | None:
        """The fraction after an integer, as in `1\\frac45` and `1{\\frac45}`, if both make a mixed number."""
        before = self.at
        braces = [t.text for t in self.tokens[self.at : self.at + 2]] == ["{", "frac"] and self.accept("{")
        if self.accept("frac"):
            mixed = mixed_number(whole, self.argument(), self.argument())
            if mixed is not None and (not braces or self.accept("}")):
                return mixed
        self.at = before
        return None

    def degrees(self, node: Node) -> Node | None:
        """After `^`: `\\circ` and `{\\circ}` are degrees, anything else is an exponent."""
        if [t.text for t in self.tokens[self.at : self.at + 3]] == ["{", "circ", "}"]:
            self.at += 3
        elif not self.accept("circ"):
            return None
        return self.temperature(node) or Apply("deg", (node,))

    def temperature(self, node: Node) -> Node | None:
        r"""After the sign for degrees: `C` and `\text{F}` at the end of a factor."""
        token = self.peek
        if token.kind not in (Kind.LETTER, Kind.WORD) or token.text not in _TEMPERATURES:
            return None
        self.next()
        return Quantity(node, _TEMPERATURES[token.text])

    def power(self, base: Node) -> Node:
        """A power; `f^{-1}(x)` is a function of its own."""
        power = self.exponent()
        if base in (Symbol("f"), Symbol("g")) and power == MINUS_ONE and self.peek.text == "(":
            assert isinstance(base, Symbol)
            return Apply("call", (Symbol(f"{base.name}^-1"), self.atom()))
        return Apply("^", (base, power))

    def exponent(self) -> Node:
        self.enter()
        node = self.signed(self.argument if self.peek.text == "{" else self.atom)
        if self.accept("^"):
            node = Apply("^", (node, self.exponent()))
        self.depth -= 1
        return node

    def unit(self, value: Node) -> Node:
        if self.accept("frac"):
            words, power = self.unit_fraction()
        else:
            words, power = self.unit_words()
        if words[0] in MULTIPLES:
            value, words = multiply([value, Number(Fraction(MULTIPLES[words[0]]))]), words[1:]
            if not words:
                return value
        if NO_UNITS & set(" ".join(words).split()) or words[-1].endswith("per"):
            raise Unreadable("words that are no unit")
        name = " ".join(words)
        if name == "percent":
            return multiply([value, Number(Fraction(1, 100))])
        if name in ("degrees", "degree"):
            return Apply("deg", (value,))
        if domain := DOMAINS.get(name.removeprefix("is ")):
            return Relation((value, Symbol(domain)), ("in",))
        unit = canonical_unit(name, power)
        if (
            unit is None
            and words
            and words[-1] not in ("remark", "of")
            and self.peek.kind in (Kind.LETTER, Kind.COMMAND)
        ):
            raise Unreadable("words between factors")
        return Quantity(value, unit)

    def unit_words(self) -> tuple[list[str], int]:
        """`m / s ^ 2` as its words and the power of the last."""
        words = []
        while self.peek.kind is Kind.WORD or self.at_unit_quotient():
            words.append(self.next().text)
        if not self.accept("^"):
            return words, 1
        exponent = self.exponent()
        if not isinstance(exponent, Number) or exponent.value.denominator != 1:
            raise Unreadable("power of a unit")
        return words, exponent.value.numerator

    def unit_fraction(self) -> tuple[list[str], int]:
        r"""`\frac{\text{m}}{\text{s}^2}` after a value is `m / s ^ 2`."""
        self.expect("{")
        above, power_above = self.unit_words()
        self.expect("}")
        self.expect("{")
        below, power = self.unit_words()
        self.expect("}")
        if not below or power_above != 1:
            raise Unreadable("fraction of units")
        return [*above, "/", *below], power

    def at_unit_fraction(self) -> bool:
        tokens = self.tokens[self.at : self.at + 3]
        return [t.text for t in tokens[:2]] == ["frac", "{"] and len(tokens) == 3 and tokens[2].kind is Kind.WORD

    def at_unit_quotient(self) -> bool:
        after = self.tokens[self.at + 1 : self.at + 2]
        return self.peek.text == "/" and bool(after) and after[0].kind is Kind.WORD


def _filled(items: list[Node], gap: int) -> list[Node]:
    """`1, 3, ..., 9` with what the dots at `gap` stand for, if it is an arithmetic progression."""
    match items[gap - 2 : gap + 1]:
        case Number(value=before), Number(value=first), Number(value=last) if gap > 1 and before != first:
            step = first - before
            count = (last - first) / step
            if count.denominator == 1 and 0 < count <= MAX_FILLED:
                between = [Number(first + step * k) for k in range(1, count.numerator)]
                return [*items[:gap], *between, *items[gap:]]
    raise Unreadable("dots that stand for anything")


def _with_sign(sign: str, node: Node) -> Node:
    match sign:
        case "+":
            return node
        case "-":
            return negate(node)
        case _:
            return Apply(sign, (node,))


def _product_of_quantities(factors: list[Node]) -> Node:
    """A unit at the end of a product belongs to the whole: 3\\pi cm is (3\\pi) cm."""
    last = factors[-1]
    if isinstance(last, Quantity) and not any(isinstance(f, Quantity) for f in factors[:-1]):
        return Quantity(multiply([*factors[:-1], last.value]), last.unit)
    if isinstance(factors[0], Quantity) and not any(isinstance(f, Quantity) for f in factors[1:]):
        return Quantity(multiply([factors[0].value, *factors[1:]]), factors[0].unit)
    return multiply(factors)
