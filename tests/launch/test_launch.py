"""`megatron-rl launch`, from the launcher's environment."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import PIPELINE, ROOT, launcher, make_checkout, plain_environment


def launch(
    *arguments: str | Path, site: Path | None = None, home: Path | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run it; without `home` from the environment of these tests, which lacks NeMo-Run."""
    program = [sys.executable, "-m", "megatron_rl"] if home is None else [launcher()]
    return subprocess.run(
        [*program, "launch", *arguments, *([] if site is None else ["--site", site])],
        cwd=cwd,
        env=plain_environment(NEMORUN_HOME=str(home)),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def refused(message: str, *arguments: str | Path, site: Path | None = None, cwd: Path = ROOT) -> None:
    """One line, which holds `message`, and exit code 2."""
    done = launch(*arguments, site=site, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("megatron-rl: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def options_of(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    return dict(lines)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.env"
    path.write_text(f"source {ROOT}/slurm/site.env\n")
    return path


def test_the_dry_run_of_a_pipeline_prints_a_batch_script_per_stage(site: Path, tmp_path: Path) -> None:
    with open(site, "a") as file:
        file.write("export SBATCH_GPUS=64 SBATCH_GPUS_PER_NODE=8 SBATCH_ACCOUNT=me SBATCH_TIMELIMIT=02:00:00\n")
    recipe, name = "recipes/14b/pipeline.yaml", "two words' $$HOME"
    done = launch(recipe, "--dry-run", f"math_16k.data.path={name}", site=site, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("#!/bin/bash\n")[1:]
    stages = ("math_8k", "math_16k", "math_24k", "code_24k", "code_32k", "math_32k")
    for script, stage in zip(scripts, stages, strict=True):
        options = options_of(script)
        assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("8", "8", "8")
        assert (options["account"], options["time"]) == ("me", "02:00:00")
        [srun] = [line for line in script.splitlines() if line.startswith("srun")]
        words = shlex.split(srun)
        size = ["cluster.num_nodes=8", "cluster.gpus_per_node=8"]
        own = [f"data.path={name}"] if stage == "math_16k" else []
        command = ["megatron-rl", "pipeline", recipe, "--stage", stage, *size, *own]
        assert words[words.index("megatron-rl") :] == command
        # The last of two wins.
        assert words.index("--wait=0") > words.index("--wait=60")
    assert not (tmp_path / "home").exists()
    # The other options are those of the sbatch scripts.
    sbatch = options_of((ROOT / "slurm" / "14b_math_stage.sh").read_text())
    for option in ("job-name", "output", "gpus", "gpus-per-node", "time"):
        del sbatch[option]
    assert len(sbatch) >= 4
    assert sbatch.items() <= options_of(scripts[0]).items()


def test_a_container_holds_the_checkout_and_a_machine_without_gpus_asks_for_none(site: Path, tmp_path: Path) -> None:
    with open(site, "a") as file:
        file.write("export CONTAINER_IMAGE=/images/a.sqsh CONTAINER_MOUNTS=/scratch:/scratch,/b:/c\n")
        file.write("export SSH_HOST=login SSH_USER=me REMOTE_DIR=/home/me/checkout\n")
    arguments = ("recipes/tiny/math.yaml", "--dry-run", "--executor", "ssh-slurm", "cluster.device=cpu")
    done = launch(*arguments, site=site, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gpus-per-node" not in options_of(done.stdout)
    [srun] = [line for line in done.stdout.splitlines() if line.startswith("srun")]
    words = shlex.split(srun)
    assert words[words.index("--container-image") + 1] == "/images/a.sqsh"
    mounts = words[words.index("--container-mounts") + 1].split(",")
    assert {"/home/me/checkout:/home/me/checkout", "/scratch:/scratch", "/b:/c"} <= set(mounts)
    assert "export SLURM_SUBMIT_DIR=/home/me/checkout " in done.stdout


def test_without_nemo_run_it_tells_how_to_get_it() -> None:
    refused("pip install 'megatron-rl[launch]' in an environment of its own", PIPELINE, "--dry-run")


def test_what_is_wrong_is_refused_before_nemo_run_is_looked_for(tmp_path: Path) -> None:
    refused("executor 'k8s' is none of slurm, local, ssh-slurm", PIPELINE, "--executor", "k8s")
    refused("gone.env: no such site file", PIPELINE, site=tmp_path / "gone.env")
    refused("gone.yaml: no such recipe", "gone.yaml")
    refused("has no slurm/job.sh", ROOT / PIPELINE, "--dry-run", site=ROOT / "slurm" / "site.env", cwd=tmp_path)
    (tmp_path / "site.env").write_text("ENVIRONMENT=\n")
    refused("ENVIRONMENT is not set", PIPELINE, "--executor", "local", "--dry-run", site=tmp_path / "site.env")
    refused("REMOTE_DIR is not set", PIPELINE, "--executor", "ssh-slurm", "--dry-run", site=tmp_path / "site.env")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment whose `megatron-rl` waits for a signal, or fails where the recipe is one of SFT; its site file."""
    program = tmp_path / "environment" / "bin" / "megatron-rl"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/bash\ntrap 'echo told; exit 75' TERM\n[[ $* == *sft* ]] && exit 3\necho started\nsleep 60 & wait\n"
    )
    program.chmod(0o755)
    site = tmp_path / "site.env"
    site.write_text(f"export ENVIRONMENT={program.parents[1]}\n")
    return site


@pytest.mark.long
def test_a_local_job_that_fails_fails_the_launch(environment: Path, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout").parents[1]
    arguments = ("recipes/tiny/sft.yaml", "--executor", "local")
    done = launch(*arguments, site=environment, home=tmp_path / "home", cwd=checkout)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "megatron-rl: tiny_sft failed; see above"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_reaches_the_local_job(environment: Path, tmp_path: Path, number: signal.Signals) -> None:
    checkout = make_checkout(tmp_path / "checkout").parents[1]
    arguments = [PIPELINE, "--executor", "local", "--site", environment]
    process = subprocess.Popen(
        [launcher(), "launch", *arguments],
        cwd=checkout,
        env=plain_environment(NEMORUN_HOME=str(tmp_path / "home"), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = ""
    while "started" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "told" in output
    assert process.returncode == 1
