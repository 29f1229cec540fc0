"""Canonical tokens to a tree, by recursive descent. Nothing is evaluated and no name is ever looked up in Python."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from verifiers.math.literals import mixed_number, read_number
from verifiers.math.nodes import (
    MINUS_ONE,
    Apply,
    Group,
    Matrix,
    Node,
    Number,
    Numeral,
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
    replaced,
    size,
)
from verifiers.math.spelling import BASES, CALLED, FUNCTIONS, MULTIPLES, NO_UNITS, UNREADABLE
from verifiers.math.tokens import CACHED, Kind, Token
from verifiers.math.units import canonical_unit
from verifiers.math.vectors import determinant

MAX_TOKENS = 1_500
MAX_DEPTH = 60
MAX_SERIES = 500  # parts of all terms together

_RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "~", "in"))
_PAIRS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",)}
_CLOSERS = frozenset((")", "]", "\\}", "}", "rfloor", "rceil"))
_NOT_FACTORS = _CLOSERS | _RELATIONS | {"cup", "setminus", "pm", "mp", "over", "choose"}
_ENDS_OF_FACTORS = frozenset(("!", ")", "]", "}"))  # a number may follow: 2!3!
_PREFIX_CURRENCIES = {"$": "dollar", "euros": "euro", "pounds": "lb"}
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
_CONSTANTS = {"pi": "pi", "infty": "infty"}
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array"))
_END = Token(Kind.MARK, "")


@lru_cache(maxsize=CACHED)
def parse(tokens: tuple[Token, ...]) -> Node:
    """The tree of a whole answer.

    Raises Unreadable if the tokens are no expression, or too many, or nested too deeply.
    """
    if len(tokens) > MAX_TOKENS:
        raise Unreadable("too many tokens")
    parser = _Parser(tokens)
    items = parser.listing()
    if parser.peek is not _END:
        raise Unreadable(f"unexpected {parser.peek.text!r}")
    return listed(items)


class _Parser:
    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0  # open |...|: inside, a bar closes

    @property
    def peek(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def next(self) -> Token:
        token = self.peek
        self.at += 1
        return token

    def accept(self, *texts: str) -> str | None:
        token = self.peek
        if token.text in texts and token.kind in (Kind.MARK, Kind.COMMAND):
            self.at += 1
            return token.text
        return None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise Unreadable(f"expected {text!r} at {self.peek.text!r}")

    # Lists, relations and sets -------------------------------------------------------------------------

    def listing(self) -> list[Node]:
        """Items between commas, semicolons, "and" and "or"; at least one."""
        items = [self.relation()]
        while self.accept(",", ";") or (self.peek.text == "(" and self.at_condition()):
            while self.accept(",", ";"):  # "1, 2, and 3"
                pass
            if self.peek is _END or self.peek.text in _CLOSERS:
                break
            item = self.relation()
            match items[0]:
                case Relation(operators=("!=",), sides=(name, _)) if not isinstance(item, Relation):
                    item = Relation((name, item), ("!=",))  # "x != 0, 1"
            items.append(item)
        return items

    def relation(self) -> Node:
        self.accept("=", "~")  # the left side was left out
        sides, operators = [self.union()], []
        while operator := self.accept(*_RELATIONS):
            operators.append(operator)
            sides.append(self.union())
        return Relation(tuple(sides), tuple(operators)) if operators else sides[0]

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
                factors.append(invert(self.signed(self.factor)))
            elif not self.starts_factor():
                break
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
        if token is _END:
            return False
        if token.kind is Kind.MARK:
            if token.text == "(" and self.at_condition():
                return False
            return token.text in _PAIRS or token.text == "$" or (token.text == "|" and not self.bars)
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
                node = self.degrees(node) or Apply("^", (node, self.exponent()))
            elif self.accept("circ"):
                node = self.temperature(node) or Apply("deg", (node,))
            elif self.accept("!"):
                node = Apply("!", (node,))
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

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")

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
        if NO_UNITS & set(" ".join(words).split()):
            raise Unreadable("words that are no unit")
        name = " ".join(words)
        if name == "percent":
            return multiply([value, Number(Fraction(1, 100))])
        if name in ("degrees", "degree"):
            return Apply("deg", (value,))
        if name in ("is an integer", "is any integer", "an integer", "integer"):
            return Relation((value, Symbol("\\ZZ")), ("in",))
        return Quantity(value, canonical_unit(name, power))

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

    # Atoms ---------------------------------------------------------------------------------------------

    def atom(self) -> Node:
        token = self.next()
        if token.kind is Kind.NUMBER:
            return self.numeral(token.text) if self.peek.text == "_" else read_number(token.text)
        if token.text in _PREFIX_CURRENCIES and (self.peek.kind is Kind.NUMBER or self.peek.text == "frac"):
            return Quantity(self.factor(), _PREFIX_CURRENCIES[token.text])
        if token.text == "C" and (choose := self.combinations()):
            return choose
        if token.kind in (Kind.LETTER, Kind.WORD):
            return self.name(token)
        if token.kind is Kind.COMMAND:
            return self.command(token.text)
        if token.text in _PAIRS:
            return self.group(token.text)
        if token.text == "|" and not self.bars:
            return self.between_bars()
        raise Unreadable(f"unexpected {token.text!r}")

    def name(self, token: Token) -> Node:
        """A variable; before parentheses, it may be a function, or the label of a point."""
        symbol = Symbol(token.text + self.name_suffix())
        if self.peek.text != "(" or token.kind is Kind.WORD:
            return symbol
        if token.text in ("P", "E") and (probability := self.probability(symbol)):
            return probability
        following = self.tokens[self.at + 1 : self.at + 3]
        is_value = len(following) == 2 and following[0].kind is Kind.NUMBER and following[1].text == ")"
        if not is_value and token.text not in CALLED:
            return symbol
        if self.at_condition():
            return symbol
        argument = self.atom()
        if isinstance(argument, Group):
            return argument if token.text.isupper() else Apply("call", (symbol, *argument.items))
        return Apply("call", (symbol, argument))

    def probability(self, symbol: Symbol) -> Node | None:
        """`P(A|B)` and `P(X = 2)` as a name, the text in parentheses unread."""
        end = self.at
        while end < len(self.tokens) and self.tokens[end].text != ")":
            end += 1
        inside = [token.text for token in self.tokens[self.at + 1 : end]]
        if end == len(self.tokens) or not {"|", "=", "<", ">", "<=", ">="} & set(inside):
            return None
        self.at = end + 1
        return Symbol(f"{symbol.name}({''.join(inside)})")

    def combinations(self) -> Node | None:
        """After C: `(n,k)` and `_n^k`, where n is a number."""
        before = self.at
        if self.accept("_") and isinstance(n := self.argument(), Number) and self.accept("^"):
            return Apply("binom", (n, self.argument()))
        self.at = before
        if self.peek.text == "(":
            match self.atom():
                case Group(opening="(", items=(Number() as n, Number() as k)) if n.value >= k.value:
                    return Apply("binom", (n, k))
        self.at = before
        return None

    def numeral(self, digits: str) -> Node:
        self.next()
        base = self.raw_argument()
        if base == "10" and digits.isdigit():
            return read_number(digits)
        return Numeral(digits, BASES.get(base, base))

    def name_suffix(self) -> str:
        """Subscripts and primes, which are part of a name."""
        suffix = ""
        while True:
            if self.accept("_"):
                suffix += "_" + self.raw_argument()
            elif self.accept("'"):
                suffix += "'"
            else:
                return suffix

    def raw_argument(self) -> str:
        """The text of a group or single token, unread."""
        if not self.accept("{"):
            return self.next().text
        text = ""
        while self.peek is not _END and self.peek.text != "}":
            text += self.next().text
        self.expect("}")
        return text

    def command(self, name: str) -> Node:
        self.enter()
        node = self.known_command(name)
        self.depth -= 1
        return node

    def known_command(self, name: str) -> Node:
        if name == "frac":
            return self.fraction()
        if name == "binom":
            return Apply("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            degree = self.root_degree()
            return Apply("root", (self.argument(whole_number=True), degree))
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("sum", "prod"):
            return self.series(add if name == "sum" else multiply)
        if name in ("lfloor", "lceil"):
            node = self.scalar(self.listing())
            self.expect("r" + name[1:])
            return Apply(name[1:], (node,))
        if name.startswith("begin "):
            return self.matrix(name.removeprefix("begin "))
        if name == "RR" and (half := self.half_of_reals()):
            return half
        if name.startswith("unit "):
            return Symbol("\\" + name)
        if name == "emptyset":
            return Group("\\{", (), "\\}")
        if name in UNREADABLE or name in _CLOSERS or name.startswith("end "):
            raise Unreadable(f"no meaning for {name}")
        symbol = Symbol(_CONSTANTS.get(name, "\\" + name) + self.name_suffix())
        if self.peek.text == "{" or (self.peek.text == "(" and (name in CALLED or name.startswith("called "))):
            argument = self.atom()
            return Apply("call", (symbol, *(argument.items if isinstance(argument, Group) else (argument,))))
        return symbol

    def fraction(self) -> Node:
        if derivative := self.derivative():
            return derivative
        above, below = self.argument(), self.argument()
        match above, below:
            case Quantity(), Quantity():
                return Quantity(multiply([above.value, invert(below.value)]), f"{above.unit} / {below.unit}")
            case Quantity(), _:
                return Quantity(multiply([above.value, invert(below)]), above.unit)
        return multiply([above, invert(below)])

    def derivative(self) -> Node | None:
        """`{dy}{dx}`: not a fraction from which d cancels."""
        tokens = self.tokens[self.at : self.at + 8]
        texts = [token.text for token in tokens]
        if len(texts) < 8 or [texts[i] for i in (0, 1, 3, 4, 5, 7)] != ["{", "d", "}", "{", "d", "}"]:
            return None
        if tokens[2].kind is not Kind.LETTER or tokens[6].kind is not Kind.LETTER:
            return None
        self.at += 8
        return Apply("call", (Symbol("d/d"), Symbol(texts[2]), Symbol(texts[6])))

    def series(self, join: Callable[[list[Node]], Node]) -> Node:
        r"""`\sum_{k=1}^{10} k^2` written out, if its bounds are integers and it is short."""
        self.expect("_")
        self.expect("{")
        index = self.relation()
        self.expect("}")
        self.expect("^")
        last = self.argument(whole_number=True)
        body = self.signed(self.product)
        match index, last:
            case Relation(operators=("=",), sides=(Symbol(name=name), Number(value=first))), Number(value=end):
                if first.denominator == end.denominator == 1 and 0 <= end - first < MAX_SERIES / size(body):
                    return join([replaced(body, name, Number(Fraction(k))) for k in range(int(first), int(end) + 1)])
        raise Unreadable("a sum or product that is not written out")

    def half_of_reals(self) -> Node | None:
        r"""After `\mathbb{R}`: `^+`, `_{>0}` and the like."""
        following = "".join(token.text for token in self.tokens[self.at : self.at + 5])
        zero, infinity = Number(Fraction(0)), Symbol("infty")
        for sign, length, half in (
            ("^+", 2, Group("(", (zero, infinity), ")")),
            ("^{+}", 4, Group("(", (zero, infinity), ")")),
            ("_{>0}", 5, Group("(", (zero, infinity), ")")),
            ("_{>=0}", 5, Group("[", (zero, infinity), ")")),
            ("^-", 2, Group("(", (negate(infinity), zero), ")")),
            ("^{-}", 4, Group("(", (negate(infinity), zero), ")")),
            ("_{<0}", 5, Group("(", (negate(infinity), zero), ")")),
        ):
            if following.startswith(sign):
                self.at += length
                return half
        return None

    def root_degree(self) -> Node:
        if not self.accept("["):
            return Number(Fraction(2))
        node = self.sum()
        self.expect("]")
        return node

    def function(self, name: str) -> Node:
        base = None
        power = None
        while mark := self.accept("_", "^"):
            if mark == "_":
                base = self.argument()
            else:
                power = self.exponent()
        argument = self.atom() if self.peek.text in ("(", "[", "{") else self.bare_operand()
        arguments = argument.items if isinstance(argument, Group) else (argument,)
        if power == MINUS_ONE and "arc" + name in FUNCTIONS:
            name, power = "arc" + name, None
        elif power == MINUS_ONE and name.endswith("h"):
            raise Unreadable("inverse hyperbolic function")
        if name == "lg":
            name, base = "log", base or Number(Fraction(10))
        if name == "cis":
            name, arguments = "exp", (multiply([Symbol("i"), *arguments]),)
        node: Node = Apply(name, (*arguments, base) if base else arguments)
        return Apply("^", (node, power)) if power else node

    def bare_operand(self) -> Node:
        """What a function applies to without parentheses: `\\sin 2\\pi x`, up to a sign or another function."""
        factors = [self.signed(self.factor)]
        while True:
            if self.accept("/"):
                factors.append(invert(self.factor()))
            elif self.starts_factor() and self.peek.text not in FUNCTIONS - {"sqrt"} and self.peek.text not in "([":
                factors.append(self.factor())
            else:
                return multiply(factors)

    def argument(self, whole_number: bool = False) -> Node:
        """A TeX argument: a group, or else one token, which for a number is its first digit."""
        token = self.peek
        if token.text == "{":
            self.next()
            return self.scalar_group("{")
        if token.kind is Kind.NUMBER and len(token.text) > 1 and not whole_number:
            if not token.text.isdigit():
                raise Unreadable("a decimal without braces")
            self.tokens = (
                *self.tokens[: self.at],
                Token(Kind.NUMBER, token.text[0]),
                Token(Kind.NUMBER, token.text[1:]),
                *self.tokens[self.at + 1 :],
            )
        return self.atom()

    def scalar_group(self, opening: str) -> Node:
        return self.scalar([self.group(opening)])

    def scalar(self, items: list[Node]) -> Node:
        if len(items) != 1 or isinstance(items[0], Group | Union | Matrix | Relation):
            raise Unreadable("a list where one value belongs")
        return items[0]

    def group(self, opening: str) -> Node:
        self.enter()
        bars, self.bars = self.bars, 0
        closing = self.accept(*_PAIRS[opening])
        items: list[Node] = []
        if closing is None:
            conditions = self.accept_set_builder() if opening == "\\{" else False
            items = self.listing()
            if conditions:
                self.expect("\\}")
                self.bars, self.depth = bars, self.depth - 1
                return listed(items)
            closing = self.accept(*_PAIRS[opening])
            if closing is None:
                raise Unreadable(f"unclosed {opening!r}")
        self.bars = bars
        self.depth -= 1
        if len(items) == 1 and opening != "\\{" and closing == _PAIRS[opening][0]:
            digits = self.tokens[self.at - 2].text
            if (
                self.peek.text == "_"
                and opening == "("
                and items[0] == Number(Fraction(int(digits) if digits.isdigit() else -1))
            ):
                return self.numeral(digits)
            return items[0]
        if not items and opening != "\\{":
            raise Unreadable("empty brackets")
        if opening == "{":
            opening, closing = "\\{", "\\}"
        return Group(opening, tuple(items), closing)

    def accept_set_builder(self) -> bool:
        r"""Skip the `x \in \mathbb{R} \mid` of `\{x \in \mathbb{R} \mid x > 2\}`: the condition is the set."""
        if self.peek.kind is Kind.LETTER:
            for length in (1, 3):
                texts = [token.text for token in self.tokens[self.at + 1 : self.at + 1 + length]]
                if texts in (["|"], [":"], ["in", "RR", "|"], ["in", "RR", ":"]):
                    self.at += 1 + length
                    return True
        return False

    def between_bars(self) -> Node:
        self.enter()
        self.bars += 1
        node = self.scalar(self.listing())
        self.bars -= 1
        self.depth -= 1
        self.expect("|")
        return Apply("abs", (node,))

    def cases(self, environment: str) -> Node:
        """A system, one relation on each line."""
        items = []
        while not self.accept(f"end {environment}"):
            items.append(self.relation())
            if not self.accept("\\\\", ",") and self.peek.text != f"end {environment}":
                raise Unreadable("a system with columns")
            self.accept("\\\\")
        return listed(items)

    def matrix(self, environment: str) -> Node:
        if environment in ("cases", "aligned"):
            return self.cases(environment)
        if environment not in _MATRICES:
            raise Unreadable(f"no meaning for {environment}")
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while not self.accept(f"end {environment}"):
            row.append(self.sum())
            if self.accept("\\\\"):
                rows.append(tuple(row))
                row = []
            elif not self.accept("&") and self.peek.text != f"end {environment}":
                raise Unreadable("unclosed matrix")
        if row:
            rows.append(tuple(row))
        if not rows or len({len(r) for r in rows}) != 1:
            raise Unreadable("ragged matrix")
        if environment == "vmatrix":
            value = determinant(tuple(rows))
            if value is None:
                raise Unreadable("a determinant that is not written out")
            return value
        return Matrix(tuple(rows))


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
