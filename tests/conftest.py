"""Fixtures of the whole suite; its folder is what makes `ranks` and `tiny` importable."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tally import total

# A busy machine is no failure: how long an example takes is not what these tests are about.
settings.register_profile("megatron_rl", deadline=None)
settings.load_profile("megatron_rl")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-golden`: for a change that is meant to change the numbers."""
    parser.addoption("--write-golden", action="store_true", help="write tests/golden anew from this run")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several hands over its counts,"""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = dict(total)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """which are added up."""
    total.update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print them."""
    if total:
        terminalreporter.write_line("fuzz: " + ", ".join(f"{count} {name}" for name, count in total.items()))


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny Qwen2 folders, `untied` and `tied`."""
    from tiny import make_model_folder

    root = tmp_path_factory.mktemp("models")
    for kind in ("untied", "tied"):
        make_model_folder(root / kind, tied=kind == "tied")
    return {kind: root / kind for kind in ("untied", "tied")}
