"""The real vLLM engine beside Megatron: weights arrive whole and in time, samples are reproducible, nothing is left.

Launches at TP=2 with one engine and at DP=2 with two, ended properly, and one at PP=2 with two, whose rank 0 is killed.
"""

import ipaddress
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ranks import started_job
from transformers import AutoModelForCausalLM

LAUNCHES = {
    "tp2": {"tp": 2, "pp": 1, "engines": 1, "fault": "bit", "hang": False},
    "dp2": {"tp": 1, "pp": 1, "engines": 2, "fault": "kill", "hang": False},
    "pp2": {"tp": 1, "pp": 2, "engines": 2, "fault": "", "hang": True},
}
ROUNDS = range(3)
MAX_NEW_TOKENS, TOLERANCE = 64, 1e-4
PATIENCE_SECONDS = 20.0


@dataclass
class Launch:
    """What a launch handed over, and which of its engines' processes lived on after it."""

    result: dict[str, Any]
    folder: Path
    started: list[int]
    left: list[int]


@pytest.fixture(scope="module", params=LAUNCHES)
def launch(
    request: pytest.FixtureRequest, model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launch]:
    settings = LAUNCHES[request.param]
    # Tied with two pipeline stages: the embedding is in both, and must be sent once.
    model = model_folders["tied" if request.param == "pp2" else "untied"]
    folder = tmp_path_factory.mktemp(f"rollout_{request.param}")
    with started_job("rollout.py", {"model": str(model), **settings}, ranks=2, folder=folder) as job:
        result = job.wait_for_result(600)
        # Rank 0's own: when it is killed, rank 1 and its engine are for the launcher to end.
        watched = result["processes"][0] if settings["hang"] else [pid for rank in result["processes"] for pid in rank]
        if settings["hang"]:
            os.kill(job.processes[0].pid, signal.SIGKILL)
            job.processes[0].wait()
        else:
            job.wait(60)
        left = living_after_a_while(watched)
        yield Launch(result, folder, watched, left)
    for pid in living_after_a_while(pid for rank in result["processes"] for pid in rank):
        os.kill(pid, signal.SIGKILL)


def living_after_a_while(pids: Any) -> list[int]:
    limit = time.monotonic() + PATIENCE_SECONDS
    living = list(pids)
    while living and time.monotonic() < limit:
        living = [pid for pid in living if is_alive(pid)]
        time.sleep(0.1)
    return living


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_listens_where_another_machine_could_reach_it(launch: Launch) -> None:
    addresses = [address for rank in launch.result["listening"] for address in rank]
    print(addresses)
    assert len(addresses) >= 3  # rank 0's two stores, and an engine's
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses


@pytest.mark.parametrize("number", ROUNDS)
def test_the_engines_log_probs_are_the_policys_after_every_sync(launch: Launch, number: int) -> None:
    found = launch.result["rounds"][number]
    for engine, policy in zip(found["rollout_log_probs"], found["policy_log_probs"], strict=True):
        torch.testing.assert_close(torch.tensor(engine), torch.tensor(policy), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("number", ROUNDS)
def test_every_update_moved_the_policy_far_beyond_the_tolerance(launch: Launch, number: int) -> None:
    """Else stale weights would pass the test above."""
    assert launch.result["rounds"][number]["moved"] > 100 * TOLERANCE


@pytest.mark.parametrize("number", ROUNDS)
def test_samples_carry_the_version_of_their_weights(launch: Launch, number: int) -> None:
    assert launch.result["rounds"][number]["versions"] == [number]
    assert launch.result["greedy_version"] == [len(ROUNDS)]


@pytest.mark.parametrize("number", ROUNDS)
def test_every_prompt_is_answered_in_full_once(launch: Launch, number: int) -> None:
    prompts = launch.result["prompts"]
    wanted = [[prompt, sample, tokens] for prompt, tokens in enumerate(prompts) for sample in range(4)]
    assert launch.result["rounds"][number]["requests"] == wanted


@pytest.mark.parametrize("number", ROUNDS)
def test_seeds_reproduce_samples(launch: Launch, number: int) -> None:
    found = launch.result["rounds"][number]
    assert found["tokens_again"] == found["tokens"]
    assert found["tokens_of_another_seed"] != found["tokens"]
    assert len({tuple(tokens) for tokens in found["tokens"]}) == len(found["tokens"]), "samples of a group are alike"


@pytest.mark.parametrize("number", ROUNDS)
def test_log_probs_do_not_depend_on_what_is_generated_beside_a_sample(launch: Launch, number: int) -> None:
    found = launch.result["rounds"][number]
    assert found["rollout_log_probs_again"] == found["rollout_log_probs"]


@pytest.mark.parametrize("number", ROUNDS)
def test_samples_end_at_eos_or_at_the_limit(launch: Launch, number: int) -> None:
    found = launch.result["rounds"][number]
    for tokens, truncated, log_probs in zip(
        found["tokens"], found["truncated"], found["rollout_log_probs"], strict=True
    ):
        assert len(log_probs) == len(tokens)
        assert truncated == (tokens[-1] != 1)
        assert len(tokens) == MAX_NEW_TOKENS if truncated else 1 not in tokens[:-1]


@pytest.mark.parametrize("number", ROUNDS)
def test_the_mismatch_metric_is_one(launch: Launch, number: int) -> None:
    metrics = launch.result["rounds"][number]["metrics"]
    assert metrics["token_mult_prob_error"] == pytest.approx(1, abs=TOLERANCE)
    assert metrics["gen_kl_error"] == pytest.approx(0, abs=1e-6)


def test_greedy_generation_is_that_of_transformers_on_the_exported_weights(launch: Launch) -> None:
    model = AutoModelForCausalLM.from_pretrained(launch.folder / "exported", dtype=torch.float32)
    for prompt, tokens in zip(launch.result["prompts"], launch.result["greedy"], strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
        assert output[0, len(prompt) :].tolist() == tokens


def test_an_fp8_engine_would_be_sent_the_policys_weights_in_blocks(launch: Launch) -> None:
    assert launch.result["fp8"] == []


def test_layers_were_cut_across_buckets(launch: Launch) -> None:
    assert min(launch.result["buckets"]) > 10


def test_a_bit_that_changes_on_the_way_is_named(launch: Launch) -> None:
    if launch.result["damage"]:
        assert re.search(r"lm_head.weight has the checksum [0-9a-f-]+ in the engine", launch.result["damage"])
    else:
        assert not launch.folder.name.startswith("rollout_tp2")


def test_an_engine_that_dies_in_a_sync_is_replaced_and_has_the_weights(launch: Launch) -> None:
    healing = launch.result["healing"]
    if launch.folder.name.startswith("rollout_dp2"):
        assert healing["restarts"] == [0, 1]
        assert healing["greedy"] == launch.result["greedy"]
        assert healing["version"] == [len(ROUNDS) + 1]
    else:
        assert healing == {}


def test_no_engine_process_outlives_its_rank(launch: Launch) -> None:
    assert launch.started
    assert launch.left == []


def test_no_socket_outlives_a_rank_that_ends_well(launch: Launch) -> None:
    files = [Path(path) for rank in launch.result["socket_files"] for path in rank]
    assert len(files) >= LAUNCHES[launch.folder.name.removeprefix("rollout_")[:3]]["engines"]
    if not launch.folder.name.startswith("rollout_pp2"):  # whose rank 0 is killed
        assert [path for path in files if path.exists() or path.parent.exists()] == []
