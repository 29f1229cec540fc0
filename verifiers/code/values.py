"""What a program's functions return, as a check compares it: in classes that the program cannot have made or changed.

An object of its own may be equal to everything. This runs in the program's process, where `run` calls it.
"""

from collections import deque
from typing import Any

_flags = type.__dict__["__flags__"].__get__  # whatever a class says of itself
_IMMUTABLE_TYPE = 1 << 8
_CONTAINERS = (list, tuple, set, frozenset, deque)
_SCALARS = {str: str.__str__, int: int.__int__, float: float.__float__}


def returning_data(function: Any) -> Any:
    """`function`, which returns its values `as_data`."""
    return lambda *args, **kwargs: as_data(function(*args, **kwargs))


def as_data(value: Any) -> Any:
    """What `value` holds, in built-in classes; one of another class that is written in C is left as it is.

    Raises:
        TypeError: its class is written in Python, and none of the built-in ones.
    """
    kind = type(value)
    if issubclass(kind, dict):
        return {as_data(key): as_data(item) for key, item in dict.items(value)}
    for container in _CONTAINERS:
        if issubclass(kind, container):
            return container(map(as_data, container.__iter__(value)))
    if hasattr(kind, "__next__"):
        return map(as_data, value)
    if _flags(kind) & _IMMUTABLE_TYPE:
        return value
    for scalar, plain in _SCALARS.items():  # of an enumeration, say
        if issubclass(kind, scalar):
            return plain(value)
    raise TypeError(f"a function returned an object of {kind.__name__}, which nothing is compared with")
