"""How many malformed inputs were tried, at the end of the session."""

import pytest
from malformed import total


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the count."""
    terminalreporter.write_line("fuzz: " + ", ".join(f"{count} {name}" for name, count in total.items()))
