"""Whether an answer equals the reference: a ladder of rungs, cheap and certain ones first.

Conventions, where the rules of mathematics leave a choice:
- A percentage equals its own value: 50% is 0.5 and 50%, never 50.
- Values are compared exactly. Only where the reference is a decimal with at least four decimals may
  an answer in exact form (no decimal anywhere in it) round to those digits.
- The order of a list matters inside brackets, not in a set or in a bare list. A bare list equals a tuple in order.
- A unit may be left out on either side; two different known units are different. Degrees count as a unit.
- The base of a numeral may be left out where the reference states it: 52 for 52_8, but not 52_8 for 52.
- `name = value` answers `value`; letters stand for real numbers; `\\log` is the natural logarithm.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from verifiers.math import numeric
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
    listed,
    negate,
    replaced,
    symbols,
)
from verifiers.math.parse import parse
from verifiers.math.scalars import same_scalar
from verifiers.math.sets import FLIPPED, INFINITY, MINUS_INFINITY, is_real_set, same_real_set
from verifiers.math.spelling import PHRASES
from verifiers.math.tokens import clean, tokenize

MAX_UNORDERED = 40
MAX_PLAIN_DIGITS = 1_000

_SPACE_NOT_BETWEEN_DIGITS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_PRODUCT = re.compile(r"[a-z]{3}")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|mbox|mathrm)\s*\{([^{}]*)\}|\\[ ,;:!]|\$")
_CHOICE = re.compile(r"\(?([A-J])\)?")
_ANSWER_IS = re.compile(r"^\\text\{\s*(?:the )?(?:final )?answer(?: is|:| is:)?\s*\}\s*(?=\S)", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{\s*)?\(([A-J])\)(?:\s*\}|\\?[ ,;:!~]|\\q?quad)+\s*(?=\S)"
)
_LEADING_CHOICE = re.compile(r"\(([A-J])\)|([A-J])(?:[).:]|$)")


def equivalent(answer: str, reference: str) -> bool:
    """Whether two answers, given as LaTeX or plain text, are equal under the conventions above."""
    if _SPACE_NOT_BETWEEN_DIGITS.sub("", answer) == _SPACE_NOT_BETWEEN_DIGITS.sub("", reference):
        return True
    plain = _both_plain_numbers(answer, reference)
    if plain is not None:
        return plain
    try:
        answer, reference = _phrase(clean(answer)), _phrase(clean(reference))
        answer, reference = _without_label(answer, reference), _without_label(reference, answer)
        words = _both_words(answer, reference)
        if words is not None:
            return words
        if tokenize(answer) == tokenize(reference) or _same_choice(answer, reference):
            return True
        return same(parse(tokenize(answer)), parse(tokenize(reference)))
    except (Unreadable, TooCostly):
        return False


def why_unreadable(reference: str) -> str | None:
    """Why a reference can only be met by the same text, or None: it is words, or mathematics that equals itself."""
    try:
        text = _phrase(clean(reference))
        if _both_words(text, text):
            return None
        tree = parse(tokenize(text))
        return None if same(tree, tree) else "it does not equal itself"
    except (Unreadable, TooCostly) as error:
        return str(error)


# Rungs on text ---------------------------------------------------------------------------------------------


def _both_plain_numbers(answer: str, reference: str) -> bool | None:
    answer, reference = answer.strip(), reference.strip()
    if max(len(answer), len(reference)) > MAX_PLAIN_DIGITS:
        return None
    if not (_PLAIN_NUMBER.fullmatch(answer) and _PLAIN_NUMBER.fullmatch(reference)):
        return None
    if not (answer.isascii() and reference.isascii()):
        return None
    return Fraction(answer) == Fraction(reference)


def _unwrapped(text: str) -> str:
    """Text without `\\text{}` around its parts, dollars and outer braces."""
    return _TEXT_COMMAND.sub(lambda m: m.group(1) or " ", text).strip(" {}.")


def _phrase(text: str) -> str:
    """The sign that a whole answer in words stands for, or the text without "the answer is"."""
    text = _ANSWER_IS.sub("", text)
    return PHRASES.get(_unwrapped(text).casefold(), text)


def _without_label(text: str, other: str) -> str:
    r"""`\text{(B)}\ 12` as `12`, where the other text has no such label of a choice."""
    label = _LABEL.match(text)
    return (
        text[label.end() :] if label and not _LABEL.match(other) and not _CHOICE.fullmatch(_unwrapped(other)) else text
    )


def _both_words(answer: str, reference: str) -> bool | None:
    """Decides if both are words ("east", "no solution", "Evelyn"): case and hyphens do not matter."""
    if _PRODUCT.fullmatch(answer) and _PRODUCT.fullmatch(reference):
        return None
    pair = [_unwrapped(text) for text in (answer, reference)]
    if not all(_WORDS.fullmatch(text) and len(text) > 2 for text in pair):
        return None
    first, second = (" ".join(text.casefold().replace("-", " ").split()) for text in pair)
    return first == second


def _same_choice(answer: str, reference: str) -> bool:
    """Multiple choice: the reference is one letter A to J, the answer starts with it, as in `(C) 12`."""
    wanted = _CHOICE.fullmatch(_unwrapped(reference))
    if wanted is None:
        return False
    given = _LEADING_CHOICE.match(_unwrapped(answer))
    return given is not None and wanted.group(1) in given.groups()


# Structures ------------------------------------------------------------------------------------------------


def same(answer: Node, reference: Node) -> bool:
    """Whether two trees are equal. Raises Unreadable or TooCostly where that cannot be decided."""
    if _is_family(answer) or _is_family(reference):
        return _same_family(_family(answer), _family(reference))
    answer, reference = _expanded(_without_name(answer)), _expanded(_without_name(reference))
    if is_real_set(answer) or is_real_set(reference):
        verdict = same_real_set(answer, reference)
        if verdict is not None:
            return verdict
    if isinstance(answer, Relation) or isinstance(reference, Relation):
        return _same_relation(answer, reference)
    if isinstance(answer, Union) or isinstance(reference, Union):
        return _matched(_parts(answer), _parts(reference))
    if isinstance(answer, Group | Matrix) or isinstance(reference, Group | Matrix):
        return _same_group(answer, reference)
    return same_scalar(answer, reference)


def _is_family(node: Node) -> bool:
    r"""`2k\pi, k \in \mathbb{Z}`: what an expression gives for all integers."""
    return isinstance(node, Group) and not node.opening and _is_integer_condition(node.items[-1])


def _is_integer_condition(node: Node) -> bool:
    return isinstance(node, Relation) and node.operators == ("in",) and node.sides[1] == Symbol("\\ZZ")


def _family(node: Node) -> tuple[Node, str]:
    """The members and the name of the integer that they are counted by, which one side may leave unsaid."""
    counters = symbols(node) - numeric.CONSTANTS
    if isinstance(node, Group) and _is_family(node):
        counters = symbols(node.items[-1]) - {"\\ZZ"}
        node = listed(node.items[:-1])
    elif isinstance(node, Relation):
        counters -= symbols(node.sides[0])
    if len(counters) != 1:
        raise Unreadable("no integer that counts")
    return node, counters.pop()


def _same_family(answer: tuple[Node, str], reference: tuple[Node, str]) -> bool:
    """Equal for all integers when the answer counts by another name, backwards, or from up to two further on."""
    members, name = answer
    counter = Symbol(reference[1])
    return any(
        same(replaced(members, name, add([count, Number(Fraction(start))])), reference[0])
        for count in (counter, negate(counter))
        for start in (0, 1, -1, 2, -2)
    )


def _without_name(node: Node) -> Node:
    r"""`x \in S` says S."""
    return node.sides[1] if isinstance(node, Relation) and node.operators == ("in",) else node


def _expanded(node: Node) -> Node:
    """Plus-minus written out: one value becomes a list of two, also inside a list or set."""
    if isinstance(node, Group):
        items: list[Node] = []
        for item in node.items:
            both = _expanded(item)
            items.extend(both.items if isinstance(both, Group) and both is not item else (item,))
        return Group(node.opening, tuple(items), node.closing) if len(items) > len(node.items) else node
    if not _has_plus_minus(node):
        return node
    return Group("", (_with_signs(node, 1), _with_signs(node, -1)), "")


def _has_plus_minus(node: Node) -> bool:
    if isinstance(node, Apply) and node.operator in ("pm", "mp"):
        return True
    return isinstance(node, Apply | Quantity | Relation) and any(_has_plus_minus(c) for c in children(node))


def _with_signs(node: Node, sign: int) -> Node:
    match node:
        case Apply(operator="pm" | "mp"):
            inner = _with_signs(node.arguments[0], sign)
            return inner if (sign > 0) == (node.operator == "pm") else negate(inner)
        case Apply():
            return Apply(node.operator, tuple(_with_signs(a, sign) for a in node.arguments))
        case Quantity():
            return Quantity(_with_signs(node.value, sign), node.unit)
        case Relation():
            return Relation(tuple(_with_signs(s, sign) for s in node.sides), node.operators)
        case _:
            return node


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
        return _covers(answer.items, reference.items) and _covers(reference.items, answer.items)
    kinds = {answer.opening, reference.opening}
    if kinds <= {"", "\\{"}:
        return _matched(answer.items, reference.items)
    if "\\{" in kinds:
        return False
    return _same_brackets(answer, reference) and _in_order(answer.items, reference.items)


def _same_as_single(answer: Node, reference: Node) -> bool:
    """A set of one is its element, and an answer given in several equal forms ("3/4 or 0.75") is each of them."""
    if isinstance(reference, Group):
        return _is_set(reference) and len(reference.items) == 1 and same(answer, reference.items[0])
    if not isinstance(answer, Group) or not (_is_set(answer) or not answer.opening):
        return False
    if _is_set(answer) and len(answer.items) != 1:
        return False
    return len(answer.items) <= MAX_UNORDERED and all(same(item, reference) for item in answer.items)


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
            if same(item, candidate):
                del left[at]
                break
        else:
            return False
    return True


def _covers(some: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether each of `others` equals one of `some`."""
    if max(len(some), len(others)) > MAX_UNORDERED:
        raise TooCostly("too many elements")
    return all(any(same(a, b) for a in some) for b in others)


# Relations -------------------------------------------------------------------------------------------------


def _same_relation(answer: Node, reference: Node) -> bool:
    if isinstance(answer, Relation) and isinstance(reference, Relation):
        if answer.operators == reference.operators == ("=",):
            return _same_equation(answer, reference)
        return _same_inequality(answer, reference)
    if isinstance(answer, Relation):
        value = _stated_value(answer)
        return value is not None and same(value, reference)
    assert isinstance(reference, Relation)
    if isinstance(reference.sides[0], Apply) and reference.sides[0].operator == "+":
        return False  # x + y + z = 0 is a plane, not the number 0
    value = _stated_value(reference)
    return value is not None and same(answer, value)


def _stated_value(relation: Relation) -> Node | None:
    """What `x = 5`, `f(2) = 5`, `x = 2 + 3 = 5`, `10/2 = 5` or `1/3 ~ 0.33` give as their answer."""
    if any(operator not in ("=", "~") for operator in relation.operators):
        return None
    sides, operators = list(relation.sides), list(relation.operators)
    if _is_name(sides[0]):
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
            first, *rest = node.arguments
            if len(rest) == 1 and isinstance(first, Symbol) and isinstance(rest[0], Number):
                return True
            return all(_is_name(argument) for argument in node.arguments)
        case Apply(operator="^", arguments=(base, exponent)):
            return exponent == MINUS_ONE and _is_name(base)  # dy/dx
        case Apply(operator="+" | "abs"):
            return all(_is_name(argument) for argument in node.arguments)
        case Group():
            return all(_is_name(item) for item in node.items)
        case Quantity():
            return _is_name(node.value)
        case _:
            return False


def _difference(relation: Relation) -> Node:
    return add([relation.sides[0], negate(relation.sides[1])])


def _same_equation(answer: Relation, reference: Relation) -> bool:
    """Equal sides, or one a nonzero multiple of the other."""
    if any(isinstance(side, Group | Matrix | Union) for side in (*answer.sides, *reference.sides)):
        return all(same(a, r) for a, r in zip(answer.sides, reference.sides, strict=True))
    return numeric.proportional(_difference(answer), _difference(reference), positive=False)


def _same_inequality(answer: Relation, reference: Relation) -> bool:
    if len(answer.operators) != 1 or len(reference.operators) != 1:
        return False
    answer, reference = _upward(answer), _upward(reference)
    if answer.operators != reference.operators or answer.operators[0] not in FLIPPED:
        return False
    positive = answer.operators[0] != "!="
    return numeric.proportional(_difference(answer), _difference(reference), positive)


def _upward(relation: Relation) -> Relation:
    """a > b as b < a."""
    if relation.operators[0] in (">", ">="):
        return Relation(relation.sides[::-1], (FLIPPED[relation.operators[0]],))
    return relation
