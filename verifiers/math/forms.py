"""One form for what may be written in several, before trees are compared."""

from collections.abc import Iterator
from itertools import product

from verifiers.math.nodes import Apply, Group, Node, Quantity, Relation, Symbol, TooCostly, children, listed, negate
from verifiers.math.vectors import evaluated

MAX_SIGNS = 4


def canonical(node: Node) -> Node:
    r"""`x \in S` as S, `(x, y) = (1, 2)` as x = 1, y = 2, multiples of vectors multiplied, plus-minus written out."""
    match node:
        case Relation(operators=("in",), sides=(_, whole)):
            return canonical(whole)
        case Relation(operators=("=",), sides=(Group(items=names), Group(items=values))) if _are_names(names):
            if len(names) == len(values) and not _signs(node):
                return listed([Relation(pair, ("=",)) for pair in zip(names, values, strict=True)])
            return _expanded(Group("(", values, ")"))
    return evaluated(_expanded(node))


def _are_names(nodes: tuple[Node, ...]) -> bool:
    return all(isinstance(node, Symbol) for node in nodes)


def _expanded(node: Node) -> Node:
    """Plus-minus written out: one value or tuple becomes a list, whose items join a list or set around it."""
    if isinstance(node, Group) and node.opening in ("", "\\{"):
        items: list[Node] = []
        for item in node.items:
            both = _expanded(item)
            items.extend(both.items if isinstance(both, Group) and both is not item else (item,))
        return Group(node.opening, tuple(items), node.closing) if len(items) > len(node.items) else node
    signs = _signs(node)
    if not signs:
        return node
    if "mp" in signs:  # all change together
        choices = [[1] * len(signs), [-1] * len(signs)]
    elif len(signs) <= MAX_SIGNS:
        choices = [list(choice) for choice in product((1, -1), repeat=len(signs))]
    else:
        raise TooCostly("too many signs")
    return Group("", tuple(evaluated(_with_signs(node, iter(choice))) for choice in choices), "")


def _signs(node: Node) -> list[str]:
    """The signs in the order of `_with_signs`."""
    mine = [node.operator] if isinstance(node, Apply) and node.operator in ("pm", "mp") else []
    if not isinstance(node, Apply | Quantity | Relation | Group):
        return []
    return mine + [sign for child in children(node) for sign in _signs(child)]


def _with_signs(node: Node, signs: Iterator[int]) -> Node:
    match node:
        case Apply(operator="pm" | "mp"):
            positive = (next(signs) > 0) == (node.operator == "pm")
            inner = _with_signs(node.arguments[0], signs)
            return inner if positive else negate(inner)
        case Apply():
            return Apply(node.operator, tuple(_with_signs(a, signs) for a in node.arguments))
        case Quantity():
            return Quantity(_with_signs(node.value, signs), node.unit)
        case Group():
            return Group(node.opening, tuple(_with_signs(item, signs) for item in node.items), node.closing)
        case Relation():
            return Relation(tuple(_with_signs(s, signs) for s in node.sides), node.operators)
        case _:
            return node
