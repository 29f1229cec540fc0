"""One form for what may be written in several, before trees are compared."""

from verifiers.math.nodes import Apply, Group, Node, Quantity, Relation, Symbol, children, listed, negate
from verifiers.math.vectors import evaluated


def canonical(node: Node) -> Node:
    r"""`x \in S` as S, `(x, y) = (1, 2)` as x = 1, y = 2, multiples of vectors multiplied, plus-minus written out."""
    match node:
        case Relation(operators=("in",), sides=(_, whole)):
            return canonical(whole)
        case Relation(operators=("=",), sides=(Group(items=names), Group(items=values))) if _are_names(names):
            if len(names) == len(values):
                return listed([Relation(pair, ("=",)) for pair in zip(names, values, strict=True)])
    return evaluated(_expanded(node))


def _are_names(nodes: tuple[Node, ...]) -> bool:
    return all(isinstance(node, Symbol) for node in nodes)


def _expanded(node: Node) -> Node:
    """Plus-minus written out: one value or tuple becomes a list of two, whose items join a list or set around it."""
    if isinstance(node, Group) and node.opening in ("", "\\{"):
        items: list[Node] = []
        for item in node.items:
            both = _expanded(item)
            items.extend(both.items if isinstance(both, Group) and both is not item else (item,))
        return Group(node.opening, tuple(items), node.closing) if len(items) > len(node.items) else node
    if not _has_plus_minus(node):
        return node
    return Group("", (evaluated(_with_signs(node, 1)), evaluated(_with_signs(node, -1))), "")


def _has_plus_minus(node: Node) -> bool:
    if isinstance(node, Apply) and node.operator in ("pm", "mp"):
        return True
    return isinstance(node, Apply | Quantity | Relation | Group) and any(_has_plus_minus(c) for c in children(node))


def _with_signs(node: Node, sign: int) -> Node:
    match node:
        case Apply(operator="pm" | "mp"):
            inner = _with_signs(node.arguments[0], sign)
            return inner if (sign > 0) == (node.operator == "pm") else negate(inner)
        case Apply():
            return Apply(node.operator, tuple(_with_signs(a, sign) for a in node.arguments))
        case Quantity():
            return Quantity(_with_signs(node.value, sign), node.unit)
        case Group():
            return Group(node.opening, tuple(_with_signs(item, sign) for item in node.items), node.closing)
        case Relation():
            return Relation(tuple(_with_signs(s, sign) for s in node.sides), node.operators)
        case _:
            return node
