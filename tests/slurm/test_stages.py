"""`sbatch slurm/14b_code_stage.sh` on a real Slurm: a whole stage, and one that is cut, killed and requeued."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from chaos import without_times
from cluster import NODES, Cluster
from tiny_stage import make_checkout

from megatron_rl.run_folder import RunFolder

pytestmark = pytest.mark.long

STAGE = "slurm/14b_code_stage.sh"
STEPS = 26
RUN_SECONDS, POLL_SECONDS = 600.0, 0.1


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a tiny model and data; its site file is `site.env`."""
    folder = tmp_path_factory.mktemp("slurm") / "checkout"
    make_checkout(folder)
    return folder


def as_user(slurm: Cluster, checkout: Path, *command: str) -> str:
    """What a user types after `source site.env`; the command's output."""
    line = ["bash", "-c", 'source site.env && "$@"', "bash", *command]
    return slurm.check(*line, cwd=checkout, env={"SITE": "site.env"})


def submit(slurm: Cluster, checkout: Path, *words: str) -> str:
    """`sbatch WORDS` as a user; the job's id."""
    return as_user(slurm, checkout, "sbatch", "--parsable", *words)


@pytest.fixture(scope="module")
def whole(slurm: Cluster, checkout: Path) -> RunFolder:
    """The first unfinished code stage, left alone, with all that is not in the site file in the recipe."""
    job = submit(slurm, checkout, STAGE, f"grpo.max_num_steps={STEPS}")
    assert slurm.wait(job, ["COMPLETED"], RUN_SECONDS)["Restarts"] == "0"
    return RunFolder(checkout / "runs/14b/code_24k")


def test_a_stage_runs_to_completion_on_the_ranks_that_srun_started(whole: RunFolder) -> None:
    summary = json.loads(whole.summary.read_text())
    assert summary["layout"]["tp"] == 2
    metrics = whole.metric_lines()
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert any(line["train/grad_norm"] > 0 for line in metrics)


def wait_for(slurm: Cluster, job: str, ready: Callable[[], bool]) -> None:
    """Until `ready` while the job runs."""
    limit = time.monotonic() + RUN_SECONDS
    while not ready():
        state = slurm.show(job)["JobState"]
        assert state in ("PENDING", "RUNNING", "COMPLETING"), slurm.output(job)
        assert time.monotonic() < limit, slurm.output(job)
        time.sleep(POLL_SECONDS)


def rank(number: int) -> psutil.Process:
    """The process of a rank of the job that runs."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if (
            command[1:2]
            and command[1].endswith("/megatron-rl")
            and process.environ().get("SLURM_PROCID") == str(number)
        ):
            return process
    raise AssertionError(f"no rank {number}")


def test_a_run_cut_killed_and_requeued_gives_the_metrics_of_one_left_alone(
    slurm: Cluster, checkout: Path, whole: RunFolder
) -> None:
    start = "policy.from_checkpoint=runs/14b/math_24k"
    job = submit(slurm, checkout, STAGE, "code_24k", f"grpo.max_num_steps={STEPS}", "output_dir=broken", start)
    run = RunFolder(checkout / "broken/14b/code_24k")

    # Its time is up: Slurm, which looks twice a minute, warns it; it saves and puts itself back into the queue.
    wait_for(slurm, job, lambda: last_step(run) >= 2)
    slurm.check("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    slurm.wait(job, ["PENDING"], RUN_SECONDS, restarts=1)
    slurm.check("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    saved = last_step(run)
    assert 2 <= saved <= STEPS - 4
    assert run.has_checkpoint(saved)
    assert f"told to stop after step {saved}" in slurm.output(job)
    assert "status 75" in slurm.output(job)

    # A rank dies.
    wait_for(slurm, job, lambda: last_step(run) >= saved + 1)
    rank(1).send_signal(signal.SIGKILL)
    slurm.wait(job, ["PENDING"], RUN_SECONDS, restarts=2)
    assert "status 137" in slurm.output(job)

    # Somebody, or the loss of a node, makes Slurm start it again.
    wait_for(slurm, job, lambda: last_step(run) >= saved + 2)
    slurm.check("scontrol", "requeue", job)

    slurm.wait(job, ["COMPLETED"], RUN_SECONDS, restarts=3)
    assert without_times(run.metric_lines()) == without_times(whole.metric_lines())


def last_step(run: RunFolder) -> int:
    """Of the metrics; 0 before the first."""
    return int(run.metric_lines()[-1]["step"]) if run.metrics.is_file() and run.metric_lines() else 0


@pytest.mark.rare
def test_the_chain_goes_from_math_to_code_over_two_nodes(slurm: Cluster, checkout: Path) -> None:
    """Stages that are finished are left out; each of the others waits for the one before and takes its weights."""
    chain = checkout / "chain/14b"
    chain.mkdir(parents=True)
    (chain / "math_16k").symlink_to(checkout / "runs/14b/math_24k")
    for name in ("math_8k", "code_32k", "math_32k"):
        (chain / name).mkdir()
        (chain / name / "summary.json").write_text("{}")
    (checkout / "two_nodes.env").write_text("source site.env\nexport SBATCH_GPUS_PER_NODE=1\n")
    command = ["slurm/pipeline.sh", "14b", "output_dir=chain", "grpo.max_num_steps=2"]
    submitted = slurm.check(*command, cwd=checkout, env={"SITE": "two_nodes.env"})
    jobs = dict(line.split() for line in submitted.splitlines())
    assert list(jobs) == ["math_24k", "code_24k"]
    assert slurm.show(jobs["code_24k"])["Dependency"] == f"afterok:{jobs['math_24k']}(unfulfilled)"
    assert slurm.wait(jobs["math_24k"], ["COMPLETED"], RUN_SECONDS)["NumNodes"] == str(len(NODES))
    assert slurm.show(jobs["code_24k"])["JobState"] in ("PENDING", "RUNNING")
    slurm.wait(jobs["code_24k"], ["COMPLETED"], RUN_SECONDS)
    summary = json.loads((chain / "code_24k/summary.json").read_text())
    assert summary["steps"] == 2


def test_bad_input_ends_the_job_before_its_ranks_start(slurm: Cluster, checkout: Path) -> None:
    job = submit(slurm, checkout, STAGE, "code_24k", "grpo.max_steps=1")
    assert slurm.wait(job, ["FAILED"], RUN_SECONDS)["ExitCode"] == "2:0"
    assert "did you mean 'grpo.max_num_steps'" in slurm.output(job)


def test_a_run_is_converted_without_gpus(slurm: Cluster, checkout: Path) -> None:
    answer = slurm.check("slurm/convert.sh", "runs/14b/math_24k", "exported", cwd=checkout, env={"SITE": "site.env"})
    job = answer.split()[-1]
    assert "gpu" not in slurm.wait(job, ["COMPLETED"], RUN_SECONDS).get("TresPerJob", "")
    assert (checkout / "exported/config.json").is_file()


@pytest.mark.rare
def test_a_checkpoint_is_evaluated_by_a_task_per_gpu(slurm: Cluster, checkout: Path) -> None:
    settings = ["cluster.device=cpu", "precision=fp32", "data.prompt_key=problem", "max_total_sequence_length=192"]
    settings += ["generation.max_new_tokens=48", "generation.enforce_eager=true", "verifier.num_workers=1"]
    job = submit(slurm, checkout, "slurm/evaluate.sh", "runs/14b/math_24k", "data/aime24.jsonl", *settings)
    slurm.wait(job, ["COMPLETED"], RUN_SECONDS)
    figures = json.loads(slurm.output(job).splitlines()[-1])["benchmarks"]["aime24"]
    assert figures["prompts"] == 8
    assert figures["verdicts"].get("pass", 0) > 0
