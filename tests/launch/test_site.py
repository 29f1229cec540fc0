"""The site file as bash reads it."""

import os
from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.launch.site import Site, environment_of, read_site

ROOT = Path(__file__).parents[2]


def site(folder: Path, text: str) -> Site:
    path = folder / "site.env"
    path.write_text(text)
    return read_site(path)


@pytest.fixture(autouse=True)
def no_site_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("SBATCH_")] + ["OVERRIDES", "CONTAINER_IMAGE"]:
        monkeypatch.delenv(key, raising=False)


def test_whatever_a_shell_understands_may_stand_in_it(tmp_path: Path) -> None:
    facts = site(
        tmp_path,
        "export SBATCH_ACCOUNT=me  # comment\nSBATCH_TIMELIMIT='01:00:00'\nexport SBATCH_MEM_PER_NODE=\n"
        'echo hello\nROOT=/data\nMEGATRON_RL_DATA="$ROOT/two words"\nOVERRIDES="a=1  b=2"\n',
    )
    assert facts.sbatch == {"account": "me", "time": "01:00:00"}
    assert facts.environment["MEGATRON_RL_DATA"] == "/data/two words"
    assert facts.overrides == ["a=1", "b=2"]
    assert facts.size == []


def test_the_size_is_whole_nodes_or_nothing(tmp_path: Path) -> None:
    whole = site(tmp_path, "SBATCH_GPUS=64\nSBATCH_GPUS_PER_NODE=4")
    assert whole.size == ["cluster.num_nodes=16", "cluster.gpus_per_node=4"]
    for text, message in (
        ("SBATCH_GPUS=64", "two numbers or none"),
        ("SBATCH_GPUS=64\nSBATCH_GPUS_PER_NODE=h100:8", "two numbers or none"),
        ("SBATCH_GPUS=8\nSBATCH_GPUS_PER_NODE=0", "a job has one GPU or more on each node"),
        ("SBATCH_GPUS=12\nSBATCH_GPUS_PER_NODE=8", "SBATCH_GPUS=12 is no multiple of SBATCH_GPUS_PER_NODE=8"),
    ):
        with pytest.raises(InputError, match=message):
            _ = site(tmp_path, text).size


def test_a_key_that_is_needed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"site\.env: SSH_HOST is not set; give it the login node's name"):
        site(tmp_path, "SSH_HOST=").need("SSH_HOST", "the login node's name")


@pytest.mark.parametrize("text", ["export A=(\n", "cd /nowhere\n", "false\n"])
def test_a_file_that_bash_fails_on_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"site\.env: ") as caught:
        site(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_environment_is_lent_without_the_options_of_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_GPUS", "128")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = dict(os.environ)
    with environment_of(site(tmp_path, "OMP_NUM_THREADS=8")):
        assert os.environ["OMP_NUM_THREADS"] == "8"
        assert "SBATCH_GPUS" not in os.environ
    assert dict(os.environ) == before


def test_the_file_of_the_repository_is_readable() -> None:
    facts = read_site(ROOT / "slurm" / "site.env")
    assert facts.environment["ENVIRONMENT"] == ".venv"
    assert facts.size == []
