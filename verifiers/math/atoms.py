"""What an expression is built of: numbers, names, commands, groups and matrices.

The half of the parser below arithmetic; `parse.py` has the other half and says what is above it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction

from verifiers.math.cursor import END, Cursor
from verifiers.math.literals import read_number
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
from verifiers.math.spelling import BASES, CALLED, FUNCTIONS, UNREADABLE
from verifiers.math.tokens import Kind, Token
from verifiers.math.vectors import determinant

MAX_SERIES = 500  # parts of all terms together

PAIRS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",)}
CLOSERS = frozenset((")", "]", "\\}", "}", "rfloor", "rceil"))
_PREFIX_CURRENCIES = {"$": "dollar", "euros": "euro", "pounds": "lb"}
_OPEN = Token(Kind.MARK, "(")
_OF_EVENTS = frozenset(("|", "=", "<", ">", "<=", ">=", "cup", "cap"))  # what only an event holds
_SYMMETRIC = frozenset(("gcd", "lcm", "max", "min"))
_CONSTANTS = {"pi": "pi", "infty": "infty"}
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array"))


class Atoms(Cursor, ABC):
    """Reads one atom at a time."""

    @abstractmethod
    def listing(self) -> list[Node]: ...

    @abstractmethod
    def relation(self) -> Node: ...

    @abstractmethod
    def sum(self) -> Node: ...

    @abstractmethod
    def product(self) -> Node: ...

    @abstractmethod
    def factor(self) -> Node: ...

    @abstractmethod
    def signed(self, operand: Callable[[], Node]) -> Node: ...

    @abstractmethod
    def exponent(self) -> Node: ...

    @abstractmethod
    def starts_factor(self) -> bool: ...

    @abstractmethod
    def at_condition(self) -> bool: ...

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
        if token.text == "(" and [t.text for t in self.tokens[self.at + 1 : self.at + 3]] == [")", "_"]:
            digits = self.next().text
            self.next()
            return self.numeral(digits)
        if token.text in PAIRS:
            return self.group(token.text)
        if token.text == "|" and not self.bars:
            return self.between_bars("|")
        if token.text == "|left":
            return self.between_bars("|right")
        raise Unreadable(f"unexpected {token.text!r}")

    def name(self, token: Token) -> Node:
        """A variable; before parentheses, it may be a function, or the label of a point."""
        symbol = Symbol(token.text + self.name_suffix())
        if self.peek.text != "(" or token.kind is Kind.WORD:
            return symbol
        if token.text in ("P", "E") and (probability := self.probability(symbol)):
            return probability
        inside, closing, after = (*self.tokens[self.at + 1 : self.at + 4], END, END, END)[:3]
        is_short = closing.text == ")" and inside.kind in (Kind.NUMBER, Kind.LETTER)
        is_stated = is_short and (inside.kind is Kind.NUMBER or after.text == "=")  # f(2), y(x) =
        is_function = token.text in ("f", "g") or (is_short and token.text in CALLED)  # but N(N-1) is a product
        if not is_stated and not is_function and not self.at_point(token):
            return symbol
        if self.at_condition():
            return symbol
        argument = self.atom()
        if isinstance(argument, Group):
            return argument if token.text.isupper() else Apply("call", (symbol, *argument.items))
        return Apply("call", (symbol, argument))

    def at_point(self, token: Token) -> bool:
        """Whether this is the label of a point, `A(1,2)`: a capital before a comma in parentheses."""
        depth, at = 0, self.at
        while token.text.isupper() and at < len(self.tokens):
            text = self.tokens[at].text
            depth += (text in PAIRS) - (text in CLOSERS)
            if depth == 0 or (depth == 1 and text == ","):
                return depth == 1
            at += 1
        return False

    def probability(self, symbol: Symbol) -> Node | None:
        """`P(A|B)` and `P(X = 2)` as a name, the text in parentheses unread."""
        end = self.at
        while end < len(self.tokens) and self.tokens[end].text != ")":
            end += 1
        inside = [token.text for token in self.tokens[self.at + 1 : end]]
        if end == len(self.tokens) or not _OF_EVENTS & set(inside):
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
        while self.peek is not END and self.peek.text != "}":
            text += self.next().text
        self.expect("}")
        return text

    # Commands ------------------------------------------------------------------------------------------

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
        if name in UNREADABLE or name in CLOSERS or name.startswith("end "):
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
        if texts[:5] == ["{", "d", "}", "{", "d"]:
            raise Unreadable("a derivative")
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
                base = self.argument(whole_number=self.tokens[self.at + 1 : self.at + 2] == (_OPEN,))
            else:
                power = self.exponent()
        argument = self.atom() if self.peek.text in ("(", "[", "{") else self.bare_operand()
        arguments = argument.items if isinstance(argument, Group) else (argument,)
        if power == MINUS_ONE and "arc" + name in FUNCTIONS:
            name, power = "arc" + name, None
        if name in _SYMMETRIC:
            arguments = tuple(sorted(arguments, key=repr))
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

    # Groups --------------------------------------------------------------------------------------------

    def group(self, opening: str) -> Node:
        self.enter()
        bars, self.bars = self.bars, 0
        is_condition = opening == "\\{" and self.accept_set_builder()
        closing = self.accept(*PAIRS[opening])
        items: list[Node] = []
        if closing is None:
            items = self.listing()
            closing = self.accept(*PAIRS[opening])
            if closing is None:
                raise Unreadable(f"unclosed {opening!r}")
        self.bars = bars
        self.depth -= 1
        if not items and opening != "\\{":
            raise Unreadable("empty brackets")
        if is_condition or (len(items) == 1 and opening != "\\{" and closing == PAIRS[opening][0]):
            return listed(items)
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

    def between_bars(self, closing: str) -> Node:
        self.enter()
        bars, self.bars = self.bars, self.bars + 1 if closing == "|" else 0
        node = self.scalar(self.listing())
        self.bars = bars
        self.depth -= 1
        self.expect(closing)
        return Apply("abs", (node,))

    def cases(self, environment: str) -> Node:
        """A system, one relation on each line."""
        if environment == "aligned":
            self.tokens = tuple(token for token in self.tokens if token.text != "&")
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
            if value is None or size(value) > MAX_SERIES:
                raise Unreadable("a determinant that is not written out")
            return value
        return Matrix(tuple(rows))
