"""Vectors and matrices as expressions: scalar multiples, transposes, determinants, unit vectors."""

from fractions import Fraction

from verifiers.math.nodes import Apply, Group, Matrix, Node, Number, Symbol, add, multiply, negate, replaced, symbols

MAX_DETERMINANT = 4
UNIT_VECTORS = ("\\unit i", "\\unit j", "\\unit k")


def evaluated(node: Node) -> Node:
    """A product of numbers and one vector or matrix as that vector or matrix, a sum of unit vectors as its tuple."""
    if symbols(node) & set(UNIT_VECTORS):
        return _of_unit_vectors(node)
    match node:
        case Apply(operator="^", arguments=(Matrix() as matrix, Symbol(name="T"))):
            return Matrix(tuple(zip(*matrix.rows, strict=True)))
        case Apply(operator="*", arguments=arguments):
            factors = [evaluated(factor) for factor in arguments]
            wholes = [factor for factor in factors if isinstance(factor, Matrix | Group)]
            if len(wholes) == 1 and (isinstance(wholes[0], Matrix) or _is_tuple(wholes[0])):
                return _scaled([factor for factor in factors if factor is not wholes[0]], wholes[0])
    return node


def _is_tuple(node: Node) -> bool:
    return isinstance(node, Group) and (node.opening, node.closing) == ("(", ")")


def _scaled(factors: list[Node], whole: Node) -> Node:
    if isinstance(whole, Matrix):
        return Matrix(tuple(tuple(multiply([*factors, cell]) for cell in row) for row in whole.rows))
    assert isinstance(whole, Group)
    return Group(whole.opening, tuple(multiply([*factors, item]) for item in whole.items), whole.closing)


def _of_unit_vectors(node: Node) -> Node:
    """Each coordinate is what the sum gives with its unit vector 1 and the others 0."""
    count = 3 if UNIT_VECTORS[2] in symbols(node) else 2
    coordinates = []
    for wanted in UNIT_VECTORS[:count]:
        value = node
        for name in UNIT_VECTORS[:count]:
            value = replaced(value, name, Number(Fraction(name == wanted)))
        coordinates.append(value)
    return Group("(", tuple(coordinates), ")")


def determinant(rows: tuple[tuple[Node, ...], ...]) -> Node | None:
    """Of a small square matrix, along its first row; None for another."""
    if len(rows) != len(rows[0]) or len(rows) > MAX_DETERMINANT:
        return None
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, cell in enumerate(rows[0]):
        minor = determinant(tuple(row[:column] + row[column + 1 :] for row in rows[1:]))
        assert minor is not None
        terms.append(multiply([cell, minor if column % 2 == 0 else negate(minor)]))
    return add(terms)
