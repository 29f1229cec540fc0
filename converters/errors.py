"""The one exception of this package, and what becomes one."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConversionError(ValueError):
    """A folder, config or tensor that cannot be converted; the message is one line that says which, and the remedy."""


@contextmanager
def os_errors() -> Iterator[None]:
    """What the system refuses (a full disk, a file that may not be read) becomes one line; also a decorator."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{error.strerror or error}; mend that and give the same command again"
        raise ConversionError(f"{where}{reason}") from error
