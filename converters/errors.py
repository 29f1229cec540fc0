"""The one exception of this package."""


class ConversionError(ValueError):
    """A folder, config or tensor that cannot be converted; the message is one line that says which, and the remedy."""
