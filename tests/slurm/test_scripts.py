"""The scripts by themselves: short, clean, and what they make of a status, a container and a whole cluster."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import PAPER_PARTITION, Cluster

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
STAGES = [script.name for script in SCRIPTS if script.name.endswith("_stage.sh")]
SIZES = ("SBATCH_GPUS", "SBATCH_GPUS_PER_NODE")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_short_and_clean(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 50
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def run_task(first: Path, program: str) -> int:
    command = ["bash", str(ROOT / "slurm/task.sh"), str(first), "bash", "-c", program]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


def test_the_first_task_to_fail_leaves_its_status(tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run_task(first, "exit 0") == 0
    assert not first.exists()
    # A task that Slurm ends because of another's failure is not the first, whatever it makes of the signal.
    assert run_task(first, "kill $PPID; exit 75") == 75
    assert not first.exists()
    assert run_task(first, "exit 3") == 3
    assert run_task(first, "kill -KILL $$") == 137
    assert first.read_text() == "3\n"


def in_job(folder: Path, program: str, **site: str | Path) -> subprocess.CompletedProcess[str]:
    """Run shell code after `slurm/job.sh`, as job 7 does; requeueing only says so."""
    (folder / "slurm").mkdir(exist_ok=True)
    settings = {
        "CONTAINER_IMAGE": "",
        "CONTAINER_MOUNTS": "",
        "REQUEUE_AFTER_SECONDS": 600,
        "REQUEUE_FAILURES": 3,
    } | site
    (folder / "site.env").write_text("".join(f"export {key}={value}\n" for key, value in settings.items()))
    job = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job", "SITE": "site.env"}
    code = f'scontrol() {{ echo "scontrol $*"; }}; source {ROOT}/slurm/job.sh; {program}'
    environment = {"PATH": "/usr/bin:/bin"} | job
    return subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_task_starts_in_the_container_or_in_the_environment(tmp_path: Path) -> None:
    show = 'printf "%s\\n" "${task_options[@]}"'
    site = {"CONTAINER_IMAGE": "/images/a.sqsh", "CONTAINER_MOUNTS": "/data:/data"}
    assert in_job(tmp_path, show, **site).stdout.splitlines() == [
        "--cpu-bind=none",
        "--container-image=/images/a.sqsh",
        f"--container-mounts={tmp_path}:{tmp_path},/data:/data",
        f"--container-workdir={tmp_path}",
    ]
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("echo activated\n")
    assert in_job(tmp_path, show, ENVIRONMENT="venv").stdout.splitlines() == ["activated", "--cpu-bind=none"]


@pytest.mark.parametrize(
    ("status", "first", "seconds", "again"),
    [
        (0, None, 9000, False),
        (1, None, 9000, True),
        (2, None, 9000, False),
        (3, None, 9000, False),
        (75, None, 5, True),
        (76, None, 5, True),
        (137, None, 9000, True),
        (137, None, 599, False),
        (137, 75, 5, True),
        (137, 3, 9000, False),
        (143, 9, 600, True),
    ],
)
def test_a_job_goes_back_into_the_queue_where_that_helps(
    tmp_path: Path, status: int, first: int | None, seconds: int, again: bool
) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    leave = f'echo {first} >"$first"' if first else ":"
    program = f"trap 'conclude $?' EXIT; SECONDS={seconds}; {leave}; exit {status}"
    done = in_job(tmp_path, program, ENVIRONMENT="venv")
    assert ("scontrol requeue 7" in done.stdout) == again, done.stdout
    assert again or done.returncode == (first or status)
    counts = again and (first or status) != 75
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == (["job-7.failures"] if counts else [])


def test_a_job_that_fails_again_and_again_does_not_go_back(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()

    def goes_back(status: int, seconds: int) -> bool:
        program = f"trap 'conclude $?' EXIT; SECONDS={seconds}; exit {status}"
        return "scontrol requeue 7" in in_job(tmp_path, program, ENVIRONMENT="venv").stdout

    assert [goes_back(1, 9000), goes_back(76, 9)] == [True, True]
    assert goes_back(75, 9), "it was told to stop, and saved"
    assert [goes_back(1, 9000), goes_back(76, 9000), goes_back(137, 9000)] == [True, True, False]
    assert list((tmp_path / "slurm").iterdir()) == []


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_asks_for_the_papers_128_gpus_and_the_site_file_for_less(slurm: Cluster, script: str) -> None:
    whole = slurm.check("sbatch", "--test-only", f"--partition={PAPER_PARTITION}", f"slurm/{script}", cwd=ROOT)
    assert f"on nodes paper[1-16] in partition {PAPER_PARTITION}" in whole
    site = {"SBATCH_PARTITION": PAPER_PARTITION, **dict(zip(SIZES, ("32", "8"), strict=True))}
    less = slurm.check("sbatch", "--test-only", f"slurm/{script}", cwd=ROOT, env=site)
    assert f"on nodes paper[1-4] in partition {PAPER_PARTITION}" in less


@pytest.mark.parametrize("script", ["evaluate.sh", "convert.sh"])
def test_evaluation_and_conversion_ask_for_one_node(slurm: Cluster, script: str) -> None:
    answer = slurm.check("sbatch", "--test-only", f"--partition={PAPER_PARTITION}", f"slurm/{script}", cwd=ROOT)
    assert f"using 96 processors on nodes paper1 in partition {PAPER_PARTITION}" in answer


def test_a_size_that_the_cluster_lacks_is_refused(slurm: Cluster) -> None:
    site = {"SBATCH_PARTITION": PAPER_PARTITION, **dict(zip(SIZES, ("256", "8"), strict=True))}
    refused = slurm.run("sbatch", "--test-only", "slurm/14b_code_stage.sh", cwd=ROOT, env=site)
    assert refused.returncode != 0
    assert "allocation failure" in refused.stdout


def test_the_chain_needs_a_model(slurm: Cluster) -> None:
    refused = slurm.run(ROOT / "slurm/pipeline.sh", "32b")
    assert (refused.returncode, refused.stdout) == (2, "usage: slurm/pipeline.sh 7b|14b [key=value ...]\n")
