"""Whether an answer equals the reference: a ladder of rungs, cheap and certain ones first.

Where the rules of mathematics leave a choice, docs/math_verifier.md states it, each rule with examples that are tests.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise

from verifiers.math import numeric
from verifiers.math.exact import rational
from verifiers.math.forms import canonical
from verifiers.math.nodes import (
    MINUS_ONE,
    Apply,
    Group,
    Matrix,
    Node,
    Number,
    Quantity,
    Relation,
    Symbol,
    TooCostly,
    Union,
    Unreadable,
    add,
    children,
    invert,
    multiply,
    negate,
    replaced,
    symbols,
)
from verifiers.math.parameters import antiderivative, family_readings, with_constants_of, without_quantifier
from verifiers.math.parse import parse
from verifiers.math.scalars import same_scalar
from verifiers.math.sets import FLIPPED, INFINITY, MINUS_INFINITY, as_interval, is_real_set, same_real_set
from verifiers.math.tokens import Kind, Token, clean, tokenize
from verifiers.math.words import both_words, phrase, same_choice, without_label

MAX_UNORDERED = 40
MAX_PLAIN_DIGITS = 1_000

_SPACE_NOT_BETWEEN_DIGITS = re.compile(r"(?<![\d\s])\s+|\s+(?![\d\s])")
_ASKED = frozenset(("lim", "int", "iint", "oint", "sum", "prod", "dots", "d"))  # of these only the value is read
_EQUALS = Token(Kind.MARK, "=")
_LOG, _COMMON_LOG = Token(Kind.COMMAND, "log"), Token(Kind.COMMAND, "lg")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")


def equivalent(answer: str, reference: str) -> bool:
    """Whether two answers, given as LaTeX or plain text, are equal under the conventions of docs/math_verifier.md."""
    if _SPACE_NOT_BETWEEN_DIGITS.sub("", answer) == _SPACE_NOT_BETWEEN_DIGITS.sub("", reference):
        return True
    plain = _both_plain_numbers(answer, reference)
    if plain is not None:
        return plain
    try:
        answer, reference = phrase(clean(answer)), phrase(clean(reference))
        answer, reference = without_label(answer, reference), without_label(reference, answer)
        words = both_words(answer, reference)
        if words is not None:
            return words
        if tokenize(answer) == tokenize(reference) or same_choice(answer, reference):
            return True
        return _same_texts(tokenize(answer), tokenize(reference))
    except (Unreadable, TooCostly):
        return False


def _same_texts(answer: tuple[Token, ...], reference: tuple[Token, ...]) -> bool:
    r"""Compared with `\log` as the natural logarithm; then, where it has no base, as that to base 10 on both sides."""
    if _same_trees(_parsed_answer(answer), parse(reference)):
        return True
    common = [tuple(_COMMON_LOG if token == _LOG else token for token in tokens) for tokens in (answer, reference)]
    return common != [answer, reference] and same(parse(common[0]), parse(common[1]))


def _parsed_answer(tokens: tuple[Token, ...]) -> Node:
    """The tree of an answer; of one whose left side is not read, as the limit it was asked for, of its right side."""
    try:
        return parse(tokens)
    except Unreadable:
        ends = [at for at, token in enumerate(tokens) if token == _EQUALS]
        if not ends or not _ASKED & {token.text for token in tokens[: ends[-1]]}:
            raise
        return parse(tokens[ends[-1] + 1 :])


def _same_trees(answer: Node, reference: Node) -> bool:
    """Compared as they are, then with the constants of integration named alike."""
    if same(answer, reference):
        return True
    for renamed in with_constants_of(answer, reference):
        first, second = antiderivative(renamed), antiderivative(reference)
        if same(renamed, reference) or (first and second and numeric.differ_by_constant(first, second)):
            return True
    return False


def why_unreadable(reference: str) -> str | None:
    """Why a reference can only be met by the same text, or None: it is words, or mathematics that is read."""
    try:
        text = phrase(clean(reference))
        if both_words(text, text):
            return None
        parse(tokenize(text))
        return None
    except (Unreadable, TooCostly) as error:
        return str(error)


def _both_plain_numbers(answer: str, reference: str) -> bool | None:
    answer, reference = answer.strip(), reference.strip()
    if max(len(answer), len(reference)) > MAX_PLAIN_DIGITS:
        return None
    if not (_PLAIN_NUMBER.fullmatch(answer) and _PLAIN_NUMBER.fullmatch(reference)):
        return None
    if not (answer.isascii() and reference.isascii()):
        return None
    return Fraction(answer) == Fraction(reference)


# Structures ------------------------------------------------------------------------------------------------


def same(answer: Node, reference: Node) -> bool:
    """Whether two trees are equal. Raises Unreadable or TooCostly where that cannot be decided."""
    if answer == reference:
        return True
    answer, reference = without_quantifier(answer), without_quantifier(reference)
    readings = family_readings(answer, reference)
    if readings is not None:
        return any(same(*pair) for pair in readings)
    if is_real_set(answer) or is_real_set(reference):
        verdict = same_real_set(answer, reference)
        if verdict is not None:
            return verdict
    answer, reference = canonical(answer), canonical(reference)
    if isinstance(answer, Relation) or isinstance(reference, Relation):
        return _same_relation(answer, reference)
    if isinstance(answer, Union) or isinstance(reference, Union):
        return _matched(_parts(answer), _parts(reference))
    if isinstance(answer, Group | Matrix) or isinstance(reference, Group | Matrix):
        return _same_group(answer, reference)
    return same_scalar(answer, reference)


def _parts(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Union) else (node,)


def _is_set(node: Node) -> bool:
    return isinstance(node, Group) and node.opening == "\\{"


def _same_group(answer: Node, reference: Node) -> bool:
    if not isinstance(answer, Group | Matrix) or not isinstance(reference, Group | Matrix):
        return _same_as_single(answer, reference)
    if isinstance(answer, Matrix) and isinstance(reference, Matrix):
        return _shape(answer) == _shape(reference) and _in_order(children(answer), children(reference))
    if isinstance(answer, Matrix) or isinstance(reference, Matrix):
        matrix, group = (answer, reference) if isinstance(answer, Matrix) else (reference, answer)
        is_vector = isinstance(matrix, Matrix) and 1 in _shape(matrix)
        return is_vector and not _is_set(group) and _in_order(children(answer), children(reference))
    if _is_set(answer) and _is_set(reference):
        if len(answer.items) == len(reference.items) == 1:
            return _is_set(answer.items[0]) == _is_set(reference.items[0]) and same(answer.items[0], reference.items[0])
        return _covers(answer.items, reference.items) and _covers(reference.items, answer.items)
    kinds = {answer.opening, reference.opening}
    if kinds <= {"", "\\{"}:
        return _matched(answer.items, reference.items)
    if ":" in kinds:
        return len(kinds) == 1 and _same_ratio(answer.items, reference.items)
    if "\\{" in kinds:
        return False
    return _same_brackets(answer, reference) and _in_order(_coordinates(answer), _coordinates(reference))


def _coordinates(group: Group) -> tuple[Node, ...]:
    """The items; those of x = 1, y = 2 in the order of the names."""
    if not group.opening and all(isinstance(i, Relation) and isinstance(i.sides[0], Symbol) for i in group.items):
        names = [item.sides[0].name for item in group.items]  # type: ignore[union-attr]
        if all(len(name) == 1 or name[1] == "_" for name in names):  # not (r, \\theta)
            return tuple(item for _, item in sorted(zip(names, group.items, strict=True), key=lambda pair: pair[0]))
    return group.items


def _same_ratio(answer: Sequence[Node], reference: Sequence[Node]) -> bool:
    """1:2:3 is 2:4:6."""
    if len(answer) != len(reference) or len(answer) > MAX_UNORDERED:
        return False
    pairs = list(zip(answer, reference, strict=True))
    zero = Number(Fraction(0))
    return all(same(a, zero) == same(r, zero) for a, r in pairs) and all(
        same(multiply([a, s]), multiply([b, r])) for (a, r), (b, s) in combinations(pairs, 2)
    )


def _same_as_single(answer: Node, reference: Node) -> bool:
    """A set of one is its element, and an answer given in several equal forms ("3/4 or 0.75") is each of them."""
    if isinstance(reference, Group):
        return _is_set(reference) and len(reference.items) == 1 and same(answer, reference.items[0])
    if not isinstance(answer, Group) or not (_is_set(answer) or not answer.opening):
        return False
    if _concludes(answer.items):
        return same(answer.items[-1], reference)
    if _is_set(answer) and len(answer.items) != 1:
        return False
    return len(answer.items) <= MAX_UNORDERED and all(same(item, reference) for item in answer.items)


def _concludes(items: Sequence[Node]) -> bool:
    """Whether the last of `m = 3, n = 10, m + n = 13` is the answer, which the others lead to."""
    if len(items) < 2 or not all(isinstance(i, Relation) and i.operators == ("=",) for i in items):
        return False
    *given, last = [item.sides for item in items if isinstance(item, Relation)]
    concluded = last[0]
    for name, value in given:
        if not isinstance(name, Symbol):
            return False
        concluded = replaced(concluded, name.name, value)
    return not isinstance(last[0], Symbol) and not symbols(concluded) - numeric.CONSTANTS and same(concluded, last[1])


def _same_brackets(answer: Group, reference: Group) -> bool:
    """Round or square matters only for two items, which may be an interval; never next to infinity."""
    if len(reference.items) != 2:
        return True
    if "" in (answer.opening, reference.opening):
        return {answer.opening + answer.closing, reference.opening + reference.closing} <= {"", "()"}
    low, high = reference.items
    return (answer.opening == reference.opening or low == MINUS_INFINITY) and (
        answer.closing == reference.closing or high == INFINITY
    )


def _shape(matrix: Matrix) -> tuple[int, int]:
    return len(matrix.rows), len(matrix.rows[0])


def _in_order(answer: Sequence[Node], reference: Sequence[Node]) -> bool:
    return len(answer) == len(reference) and all(same(a, r) for a, r in zip(answer, reference, strict=True))


def _matched(answer: Sequence[Node], reference: Sequence[Node]) -> bool:
    """Equal in some order, one to one."""
    if len(answer) != len(reference):
        return False
    if len(answer) > MAX_UNORDERED:
        return _in_order(answer, reference)
    left = list(reference)
    for item in answer:
        for at, candidate in enumerate(left):
            if _is_set(item) == _is_set(candidate) and same(item, candidate):
                del left[at]
                break
        else:
            return False
    return True


def _covers(some: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether each of `others` equals one of `some`."""
    if max(len(some), len(others)) > MAX_UNORDERED:
        raise TooCostly("too many elements")
    return all(any(_is_set(a) == _is_set(b) and same(a, b) for a in some) for b in others)


# Relations -------------------------------------------------------------------------------------------------


def _same_relation(answer: Node, reference: Node) -> bool:
    if isinstance(answer, Relation) and isinstance(reference, Relation):
        if len(answer.sides) > 2 and set(answer.operators) == set(reference.operators) == {"="}:
            return _matched(answer.sides, reference.sides)
        if "mod" in answer.operators or "mod" in reference.operators:
            return answer.operators == reference.operators and _same_congruence(answer.sides, reference.sides)
        if answer.operators == reference.operators == ("=",):
            return _same_equation(answer, reference)
        return _same_inequality(answer, reference)
    if isinstance(answer, Relation):
        value = _stated_value(answer) or as_interval(_upward(answer))
        return value is not None and same(value, reference)
    assert isinstance(reference, Relation)
    if isinstance(reference.sides[0], Apply) and reference.sides[0].operator != "call":
        return False  # x + y + z = 0 is a plane, not the number 0
    value = _stated_value(reference) or as_interval(_upward(reference))
    return value is not None and same(answer, value)


def _stated_value(relation: Relation) -> Node | None:
    """What `x = 5`, `f(2) = 5`, `x = 2 + 3 = 5`, `10/2 = 5`, `1/3 ~ 0.33` or `x = 3 (mod 7)` give as their answer."""
    if "mod" in relation.operators:
        return relation.sides[1]
    if any(operator not in ("=", "~") for operator in relation.operators):
        return None
    sides, operators = list(relation.sides), list(relation.operators)
    is_inverse = isinstance(sides[0], Apply) and sides[0].operator == "^" and not isinstance(sides[-1], Matrix)
    if _is_name(sides[0]) and not is_inverse:
        del sides[0], operators[0]
    exact = sides[: operators.index("~") + 1] if "~" in operators else sides
    if all(same(a, b) for a, b in pairwise(exact)):
        return exact[-1]
    return None


def _is_name(node: Node) -> bool:
    """Whether a left side only names what is asked for: x, x_1, f(2), AB, x + y, (x, y)."""
    match node:
        case Symbol():
            return node.name not in ("pi", "e", "i")
        case Apply(operator="*"):
            return all(_is_name(argument) for argument in node.arguments)
        case Apply(operator="^", arguments=(base, exponent)):
            return exponent == MINUS_ONE and _is_name(base)  # a/b
        case Apply(operator="call"):
            return True
        case Apply(operator="+" | "abs" | "sin" | "cos" | "tan" | "gcd" | "lcm" | "max" | "min"):
            return all(_is_name(argument) for argument in node.arguments)
        case Group():
            return all(_is_name(item) for item in node.items)
        case Quantity():
            return _is_name(node.value)
        case _:
            return False


def _same_congruence(answer: Sequence[Node], reference: Sequence[Node]) -> bool:
    """x = a (mod m) for the same x and m, and an a that differs by a multiple of m."""
    (x, a, m), (y, b, n) = answer, reference
    if not (same(x, y) and same(m, n)):
        return False
    quotient = rational(multiply([add([a, negate(b)]), invert(m)]))
    return same(a, b) if quotient is None else quotient.denominator == 1


def _difference(relation: Relation) -> Node:
    return add([relation.sides[0], negate(relation.sides[1])])


def _same_equation(answer: Relation, reference: Relation) -> bool:
    """Equal sides, or one a nonzero multiple of the other."""
    if any(isinstance(side, Group | Matrix | Union) for side in (*answer.sides, *reference.sides)):
        return all(same(a, r) for a, r in zip(answer.sides, reference.sides, strict=True))
    if answer.sides[0] == reference.sides[0]:
        return same(answer.sides[1], reference.sides[1])
    match answer.sides[0], reference.sides[0]:
        case (
            Apply(operator="call", arguments=(function, Symbol(name=mine))),
            Apply(operator="call", arguments=(other, Symbol() as theirs)),
        ) if function == other:
            return same(replaced(answer.sides[1], mine, theirs), reference.sides[1])  # f(t) = t^2
        case Symbol(name=mine), Symbol(name=other) if mine.startswith(f"{other}_") or other.startswith(f"{mine}_"):
            return same(answer.sides[1], reference.sides[1])  # x_1 = 1 where x = 1 was asked for
        case (Symbol(name="y"), Apply(operator="call")) | (Apply(operator="call"), Symbol(name="y")):
            return same(answer.sides[1], reference.sides[1])
    return numeric.proportional(_difference(answer), _difference(reference), positive=False)


def _same_inequality(answer: Relation, reference: Relation) -> bool:
    answer, reference = _upward(answer), _upward(reference)
    if answer.operators != reference.operators or answer.operators[0] not in FLIPPED:
        return False
    if len(answer.operators) > 1:
        return _in_order(answer.sides, reference.sides)
    positive = answer.operators[0] != "!="
    return numeric.proportional(_difference(answer), _difference(reference), positive)


def _upward(relation: Relation) -> Relation:
    """a > b as b < a, and so for a chain."""
    if relation.operators[0] in (">", ">="):
        flipped = tuple(FLIPPED.get(operator, operator) for operator in relation.operators[::-1])
        return Relation(relation.sides[::-1], flipped)
    return relation
