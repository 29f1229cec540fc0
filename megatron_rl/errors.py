"""The one exception that means: the user can fix this."""


class InputError(ValueError):
    """Bad input. The message is one line that names the place, both values and the remedy; the CLI exits with 2."""


class RunStopped(RuntimeError):
    """A guard found the run broken and stopped it; the message is one line that says what, by how much, what to do."""
