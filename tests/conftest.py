"""Fixtures of the whole suite; its folder is what makes `ranks` and `tiny` importable."""

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure: how long an example takes is not what these tests are about.
settings.register_profile("megatron_rl", deadline=None)
settings.load_profile("megatron_rl")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-golden`: for a change that is meant to change the numbers."""
    parser.addoption("--write-golden", action="store_true", help="write tests/golden anew from this run")


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny Qwen2 folders, `untied` and `tied`."""
    from tiny import make_model_folder

    root = tmp_path_factory.mktemp("models")
    for kind in ("untied", "tied"):
        make_model_folder(root / kind, tied=kind == "tied")
    return {kind: root / kind for kind in ("untied", "tied")}
