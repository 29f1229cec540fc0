"""`launch` on a real Slurm: the jobs of a pipeline, one after the other, and what a notebook gets back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from launching import FEW_STEPS, PIPELINE, ROOT, STAGES, launcher, make_checkout

NOTEBOOK = """\
import json, sys
from megatron_rl.launch import launch
experiment = launch(sys.argv[1], sys.argv[3:], site=sys.argv[2])
print(json.dumps({job.id: job.handle.split("/")[3] for job in experiment.jobs}))
"""


def submit(slurm: Cluster, site: Path, *overrides: str) -> dict[str, str]:
    """Launch the tiny pipeline as a notebook does; ids of the jobs by stage."""
    home = {"NEMORUN_HOME": str(site.parents[2] / "home")}
    words = [launcher("python"), "-c", NOTEBOOK, PIPELINE, site, *overrides]
    return json.loads(slurm.check(*words, cwd=site.parents[1], env=home).splitlines()[-1])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = make_checkout(tmp_path / "checkout")
    with open(path, "a") as file:
        file.write("export SBATCH_GPUS=2 SBATCH_GPUS_PER_NODE=2 SBATCH_TIMELIMIT=00:30:00\n")
    return path


@pytest.mark.long
@pytest.mark.rare
def test_a_pipeline_runs_as_a_chain_of_jobs(slurm: Cluster, site: Path) -> None:
    jobs = submit(slurm, site, *FEW_STEPS)
    assert list(jobs) == list(STAGES)
    assert f"afterok:{jobs['sft']}" in slurm.show(jobs["math"])["Dependency"]
    for stage in STAGES:
        found = slurm.wait(jobs[stage], ["COMPLETED"], seconds=900)
        assert found["Restarts"] == "0"
        assert (site.parents[1] / "runs" / "demo" / stage / "summary.json").is_file()


@pytest.fixture
def pretender(site: Path) -> Path:
    """A site whose `megatron-rl` saves and stops (75) in the first start of a job, and finds bad input in `code`."""
    program = site.parents[2] / "environment" / "bin" / "megatron-rl"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/bash\n[[ $* == *code* ]] && exit 2\n((${SLURM_RESTART_COUNT:-0})) || exit 75\n")
    program.chmod(0o755)
    (program.parent / "activate").write_text(f"export PATH={program.parent}:$PATH\n")
    with open(site, "a") as file:
        file.write(f"export ENVIRONMENT={program.parents[1]}\n")
    return site


@pytest.mark.long
@pytest.mark.rare
def test_status_75_goes_back_into_the_queue_and_status_2_ends_the_chain(slurm: Cluster, pretender: Path) -> None:
    jobs = submit(slurm, pretender)
    for stage in ("sft", "math"):
        assert slurm.wait(jobs[stage], ["COMPLETED"], seconds=120)["Restarts"] == "1"
    assert slurm.wait(jobs["code"], ["FAILED"], seconds=60)["ExitCode"] == "2:0"


@pytest.mark.long
def test_what_slurm_refuses_is_one_line(slurm: Cluster, site: Path) -> None:
    with open(site, "a") as file:
        file.write("export SBATCH_PARTITION=gone\n")
    done = subprocess.run(
        [launcher(), "launch", PIPELINE, "--site", site],
        cwd=site.parents[1],
        env=slurm.env | {"NEMORUN_HOME": str(site.parents[2] / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "gone" in done.stderr or "partition" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.long
def test_sbatch_and_nemo_run_give_the_same_command(slurm: Cluster, site: Path) -> None:
    """A `megatron-rl` that is the real one for `command`, and else notes what every task was told to run."""
    checkout, program = site.parents[1], site.parents[2] / "environment" / "bin" / "megatron-rl"
    program.parent.mkdir(parents=True)
    real = f'exec {sys.executable} -m megatron_rl "$@"'
    program.write_text(f'#!/bin/bash\n[[ $1 == command ]] && {real}\necho "$*" >>ran-$SLURM_JOB_ID\n')
    program.chmod(0o755)
    (program.parent / "activate").write_text(f"export PATH={program.parent}:$PATH PYTHONPATH={ROOT}\n")
    with open(site, "a") as file:
        file.write(f"export ENVIRONMENT={program.parents[1]} OVERRIDES='logger.samples_per_step=3 seed=5'\n")
    words = ("sft.max_num_steps=3", "logger.wandb.name=two words")
    line = ["bash", "-c", f'source {site} && sbatch --parsable "$@"', "bash", "slurm/7b_math_stage.sh", "sft", *words]
    by_sbatch = slurm.check(*line, cwd=checkout, env={"SITE": str(site), "RECIPE": PIPELINE})
    launched = [launcher(), "launch", PIPELINE, "--stage", "sft", "--site", site, *words]
    slurm.check(*launched, cwd=checkout, env={"NEMORUN_HOME": str(site.parents[2] / "home")})
    by_nemo_run = str(int(by_sbatch) + 1)
    for job in (by_sbatch, by_nemo_run):
        slurm.wait(job, ["COMPLETED"], seconds=120)
    told = [(checkout / f"ran-{job}").read_text().splitlines() for job in (by_sbatch, by_nemo_run)]
    wanted = f"pipeline {PIPELINE} --stage sft cluster.num_nodes=1 cluster.gpus_per_node=2"
    assert told[0] == [f"{wanted} logger.samples_per_step=3 seed=5 {' '.join(words)}"] * 2
    assert told[1] == told[0]
