"""The optimizer in the host's memory, on a pretended GPU: no number changes, and checkpoints go from one to the other.

What it saves, and what it costs, only a GPU can tell.
"""

from pathlib import Path
from typing import Any

import pytest
from ranks import run_job


@pytest.fixture(scope="module")
def result(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = {"model": str(model_folders["untied"]), "ranks": 2}
    found: dict[str, Any] = run_job("host_optimizer.py", arguments, 2, tmp_path_factory.mktemp("host_optimizer"))
    return found


def test_steps_made_in_the_hosts_memory_are_those_of_the_gpu(result: dict[str, Any]) -> None:
    on_gpu, on_host = result["metrics"]["gpu"], result["metrics"]["host"]
    assert len({step["loss"] for step in on_gpu}) == 6
    for found, wanted in zip(on_host, on_gpu, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("of", ["gpu", "host"])
@pytest.mark.parametrize("on", ["gpu", "host"])
def test_a_checkpoint_of_either_carries_on_in_the_other(result: dict[str, Any], of: str, on: str) -> None:
    resumed = result["metrics"][f"{of}, resumed on {on}"]
    assert len(resumed) == 3
    for found, wanted in zip(resumed, result["metrics"][of][3:], strict=True):
        assert found == (wanted if of == on else pytest.approx(wanted, rel=1e-5))


def test_the_state_is_in_the_hosts_memory_and_no_more_of_it_than_is_needed(result: dict[str, Any]) -> None:
    assert result["left"]["gpu"] == ["exp_avg", "exp_avg_sq"]
    assert [result["left"][name] for name in ("host", "host, resumed on host", "gpu, resumed on host")] == [[], [], []]


def test_an_optimizer_that_was_out_of_the_way_still_updates_the_weights_themselves(result: dict[str, Any]) -> None:
    before, after = result["parts"]
    assert before == after > 0
