"""Refusals that a look at the files allows, before anything heavy is imported."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import HF_CONFIG, train_config

from converters.manifest import MANIFEST
from megatron_rl.config.schema import VerifierConfig
from megatron_rl.errors import InputError
from megatron_rl.preflight import check_verifier, preflight
from megatron_rl.run_folder import RunFolder
from verifiers.code import Isolation, judge
from verifiers.isolation import IsolationLevel

LINE = json.dumps({"prompt": "1+1=", "answer": "2", "response": "two"}) + "\n"
SCRATCH = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}


@pytest.fixture
def model(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A model folder of this test's own."""
    return Path(shutil.copytree(model_folders["untied"], tmp_path / "model"))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "data.jsonl").write_text(LINE)
    return {"output_dir": str(tmp_path / "runs"), "data__path": str(tmp_path / "data.jsonl")}


def change_config(model: Path, **changes: Any) -> None:
    (model / "config.json").write_text(json.dumps(HF_CONFIG | changes))


def refused(model: Path | str, message: str, **settings: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        preflight(train_config(model, **settings))
    assert "\n" not in str(caught.value)


def test_a_complete_folder_and_good_data_pass(model: Path, settings: dict[str, Any]) -> None:
    preflight(train_config(model, **settings))
    preflight(train_config(model, **settings, cluster__gpus_per_node=8, policy__tensor_model_parallel_size=2))
    preflight(train_config(model, **settings, cluster__gpus_per_node=4, policy__pipeline_model_parallel_size=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy__tensor_model_parallel_size": 8, "cluster__gpus_per_node": 8},
            "policy.tensor_model_parallel_size=8 does not divide the model's 4 attention heads; use a divisor of 4",
        ),
        (
            {"policy__tensor_model_parallel_size": 4, "cluster__gpus_per_node": 4},
            "policy.tensor_model_parallel_size=4 does not divide the model's 2 key-value heads; use a divisor of 2",
        ),
        (
            {"policy__pipeline_model_parallel_size": 3, "cluster__gpus_per_node": 3},
            "policy.pipeline_model_parallel_size=3 does not divide the model's 4 layers; use a divisor of 4",
        ),
        (
            {
                "policy__pipeline_model_parallel_size": 2,
                "policy__virtual_pipeline_model_parallel_size": 3,
                "cluster__gpus_per_node": 2,
            },
            "policy.pipeline_model_parallel_size x policy.virtual_pipeline_model_parallel_size = 2 x 3 does not divide "
            "the model's 4 layers; change one of them",
        ),
        (
            {
                "policy__pipeline_model_parallel_size": 2,
                "cluster__gpus_per_node": 2,
                "policy__precision": "bf16",
                "policy__fp8__num_layers_at_end_in_bf16": 3,
            },
            "policy.fp8.num_layers_at_end_in_bf16=3 is above the 2 layers of a pipeline stage; lower it",
        ),
        (
            {"policy__max_total_sequence_length": 257},
            "policy.max_total_sequence_length=257 is above the model's context of 256 tokens",
        ),
    ],
)
@pytest.mark.parametrize("scratch", [False, True])
def test_a_layout_that_does_not_divide_the_model_is_refused(
    model: Path, settings: dict[str, Any], scratch: bool, changes: dict[str, Any], message: str
) -> None:
    if scratch:
        changes = changes | {"policy__model_name": None, "policy__from_scratch": SCRATCH}
    refused(model, message, **settings, **changes)


def test_heads_that_tp_divides_but_feed_forward_does_not(model: Path, settings: dict[str, Any]) -> None:
    change_config(model, intermediate_size=193)
    refused(model, "193", **settings, policy__tensor_model_parallel_size=2, cluster__gpus_per_node=2)


def test_a_missing_model_folder_is_refused(settings: dict[str, Any]) -> None:
    refused("no/such/folder", "policy.model_name: no/such/folder/config.json: missing", **settings)


def test_a_folder_without_weights_is_refused(model: Path, settings: dict[str, Any]) -> None:
    (model / "model.safetensors").unlink()
    refused(model, "no *.safetensors weights", **settings)


def test_truncated_weights_are_refused(model: Path, settings: dict[str, Any]) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(model, "damaged or cut short", **settings)


def test_a_checkpoint_stands_in_for_weights(model: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    other = RunFolder(tmp_path / "other")
    refused(model, "neither a checkpoint nor a run folder", **settings, policy__from_checkpoint=str(other.path))
    other.checkpoint(3).mkdir(parents=True)
    (other.checkpoint(3) / MANIFEST).write_text("{}")
    preflight(train_config(model, **settings, policy__from_checkpoint=str(other.path)))


def test_a_run_that_has_begun_needs_neither_weights_nor_first_checkpoint(
    model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    (model / "model.safetensors").unlink()
    own = RunFolder(tmp_path / "runs" / "test")
    own.checkpoint(1).mkdir(parents=True)
    (own.checkpoint(1) / MANIFEST).write_text("{}")
    preflight(train_config(model, **settings, policy__from_checkpoint="gone"))


def test_data_is_read_before_the_run(model: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(LINE + '{"prompt": \n')
    refused(model, "broken.jsonl:2: broken JSON", **settings | {"data__path": str(broken)})
    refused(model, "none.jsonl: no such file", **settings | {"data__path": str(tmp_path / "none.jsonl")})
    refused(model, "broken.jsonl:2: broken JSON", **settings, validation__data={"math": {"path": str(broken)}})
    broken.write_text('{"id": "1", "pass_rate": 1}\n')
    refused(model, "broken.jsonl:1: no id, pass_rate", **settings, grpo__problem_scores=str(broken))


def test_sft_needs_responses_and_grpo_does_not(model: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    preflight(train_config(model, **settings))
    refused(model, "no column 'response'", **settings, algorithm="sft", sft={"max_num_steps": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "host:1"}, "verifier: address 'host:1': write unix:/path/of/socket or tcp:HOST:PORT"),
        ({"address": "tcp:host:1"}, "verifier: address=tcp:host:1 needs secret_file, the server's secret"),
        ({"address": "tcp:host:1", "secret_file": "/none"}, "verifier: /none: no such secret file"),
    ],
)
def test_an_unusable_verifier_server_is_refused(
    model: Path, settings: dict[str, Any], changes: dict[str, str], message: str
) -> None:
    refused(model, message, **settings, **{f"verifier__{key}": value for key, value in changes.items()})


def test_programs_do_not_run_with_less_isolation_than_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Isolation(IsolationLevel.LIMITS, ("limits",), ("seccomp",))
    monkeypatch.setattr(judge, "isolation", lambda: weak)
    message = "verifier.min_isolation=landlock: programs would be isolated by limits only, and landlock is demanded"
    with pytest.raises(InputError, match=message):
        check_verifier(VerifierConfig(), runs_code=True)
    check_verifier(VerifierConfig(), runs_code=False)
    check_verifier(VerifierConfig(min_isolation=IsolationLevel.LIMITS), runs_code=True)
