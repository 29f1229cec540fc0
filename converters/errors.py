"""The one exception of this package, and what becomes one."""

from collections.abc import Iterator
from contextlib import contextmanager

_LINE = 1000


class ConversionError(ValueError):
    """A folder, config or tensor that cannot be converted; the message is one line that says which, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """`message`, which may quote anything from outside, as one line that a person can read."""
    line = " ".join(message.splitlines())
    return line if len(line) <= _LINE else f"{line[: _LINE // 2]} [...] {line[-_LINE // 2 :]}"


@contextmanager
def os_errors() -> Iterator[None]:
    """What the system refuses (a full disk, a file that may not be read) becomes one line; also a decorator."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{error.strerror or error}; mend that and give the same command again"
        raise ConversionError(f"{where}{reason}") from error
