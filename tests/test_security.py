"""What docs/security.md promises: nothing from outside is run, no secret is written down, no port is open to others."""

import ast
import ipaddress
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from megatron_rl.report import write_report
from megatron_rl.run_folder import RunFolder
from megatron_rl.sockets import tcp_store

ROOT = Path(__file__).parents[1]
PACKAGES = ("megatron_rl", "converters", "verifiers")
PATIENCE_SECONDS = 400.0

# Code ------------------------------------------------------------------------------------------------------------

RUNS_WHAT_IT_IS_GIVEN = (
    *("eval", "exec", "compile", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "shelve.open", "marshal.loads", "numpy.load", "np.load"),
)
ALLOWED = {
    ("verifiers/frames.py", "pickle.loads"),  # tasks, which a pool sends its own workers over a pipe of theirs
    ("verifiers/code/run.py", "exec"),  # the program that is judged, in its sandbox
    ("verifiers/code/run.py", "compile"),
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in our packages: file, dotted name of what is called, the call."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


def test_nothing_that_is_read_is_run() -> None:
    found = {(file, name) for file, name, _ in calls() if name in RUNS_WHAT_IT_IS_GIVEN}
    assert found == ALLOWED


def test_models_come_from_local_safetensors_without_code_of_their_own() -> None:
    loads = [(file, name, node) for file, name, node in calls() if name.endswith(".from_pretrained")]
    assert len(loads) >= 3
    for file, name, node in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("local_files_only") == "True", file
        assert given.get("trust_remote_code") == "False", file
        assert "Model" not in name or given.get("use_safetensors") == "True", file
    everything = [(file, keyword) for file, _, node in calls() for keyword in node.keywords]
    assert not [file for file, keyword in everything if keyword.arg == "shell"]
    assert {ast.unparse(keyword.value) for _, keyword in everything if keyword.arg == "trust_remote_code"} == {"False"}


def test_no_setting_reaches_a_shell(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """slurm/stage.sh reads the words of `megatron-rl command` with bash's eval."""
    (tmp_path / "data.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2", "response": "2"}\n')
    recipe = write_recipe(tmp_path, model_folders["untied"])
    hostile = f"name=x$(touch {tmp_path}/a)`touch {tmp_path}/b`;touch {tmp_path}/c 'd' \"e\" \\"
    command = [sys.executable, "-m", "megatron_rl", "command", str(recipe), hostile]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    script = 'eval "command=($1)"; printf "%s\\0" "${command[@]}"'
    read = subprocess.run(["bash", "-c", script, "bash", done.stdout], capture_output=True, text=True, check=True)
    assert read.stdout.split("\0")[:-1] == ["megatron-rl", "train", str(recipe), hostile] == shlex.split(done.stdout)
    assert not [path for path in tmp_path.iterdir() if len(path.name) == 1]


# A run -----------------------------------------------------------------------------------------------------------

SECRETS = {"WANDB_API_KEY": "0123wandbkey4567", "HF_TOKEN": "hf_tokentokentoken", "file": "f00dverifiersecretf00d"}


def write_recipe(folder: Path, model: Path) -> Path:
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRETS["file"] + "\n")
    config: dict[str, Any] = {
        "algorithm": "sft",
        "name": "run",
        "output_dir": str(folder),
        "cluster": {"gpus_per_node": 2, "device": "cpu"},
        "policy": {
            "model_name": str(model),
            "max_total_sequence_length": 256,
            "precision": "fp32",
            "make_vocab_size_divisible_by": 16,
            "tensor_model_parallel_size": 2,
        },
        "sft": {"max_num_steps": 1, "global_batch_size": 2},
        "data": {"path": str(folder / "data.jsonl")},
        "verifier": {"address": "tcp:127.0.0.1:9", "secret_file": str(secret)},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True)
class Run:
    """A run of one step on two ranks: where it is, what it said, and the addresses at which it listened."""

    folder: RunFolder
    output: str
    listened: set[str]


@pytest.fixture(scope="module")
def run(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("secure")
    lines = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "response": "easy"} for i in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = write_recipe(folder, model_folders["untied"])
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    environment |= {"PYTHONPATH": str(ROOT)} | {key: SECRETS[key] for key in ("WANDB_API_KEY", "HF_TOKEN")}
    log, listened = folder / "output.log", set()
    limit = time.monotonic() + PATIENCE_SECONDS
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "megatron_rl", "train", str(recipe)]
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None and time.monotonic() < limit:
                listened |= listening(process)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()  # which it passes on to the ranks
            status = process.wait()
    assert status == 0, log.read_text()[-4000:]
    write_report(folder / "run")
    return Run(RunFolder(folder / "run"), log.read_text(), listened)


def listening(process: psutil.Process) -> set[str]:
    """Where it and all that it started listen for TCP connections, as far as they still live."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)]:
            found |= {place.laddr.ip for place in each.net_connections("tcp") if place.status == psutil.CONN_LISTEN}
    return found


def test_a_run_on_one_machine_listens_to_itself_only(run: Run) -> None:
    """With engines: tests/rollout/test_rollout.py."""
    assert run.listened, "the ranks' store was not seen"
    assert all(ipaddress.ip_address(address).is_loopback for address in run.listened), run.listened


def test_no_secret_is_written_down(run: Run) -> None:
    files = [path for path in run.folder.path.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "summary.json", "report.html", "README.md"} <= {path.name for path in files}
    assert "secret_file" in run.folder.config.read_text()
    for secret in SECRETS.values():
        assert secret not in run.output
        assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_store_is_served_at_its_hosts_address_only(host: str) -> None:
    store = tcp_store(host, 0, is_master=True, wait_for_workers=False)
    places = {place.laddr.ip for place in psutil.Process().net_connections("tcp") if place.laddr.port == store.port}
    assert places == {"127.0.0.1"}
    tcp_store(host, store.port).set("key", "value")
    assert store.get("key") == b"value"
