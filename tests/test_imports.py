"""What importing a module brings along, measured in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "vllm", "megatron", "transformers", "sympy"}


def loaded_by(module: str) -> set[str]:
    """Top-level names in `sys.modules` after `import module`."""
    code = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("megatron_rl.cli", HEAVY | {"numpy", "omegaconf", "nemo_run"}),
        ("megatron_rl.command", HEAVY),
        ("megatron_rl.launch", HEAVY | {"nemo_run"}),
        ("megatron_rl.cli_plan", HEAVY | {"numpy", "omegaconf"}),
        ("megatron_rl.plan.recipe", HEAVY),
        ("megatron_rl.plan.show", {"megatron", "vllm", "transformers"}),
        ("megatron_rl.plan.simulate_show", HEAVY | {"numpy"}),
        ("megatron_rl.policy.packing", HEAVY),
        ("megatron_rl.policy.flops", HEAVY),
        ("megatron_rl.config.loader", HEAVY),
        ("megatron_rl.config.schema", HEAVY),
        ("megatron_rl.preflight", HEAVY),
        ("megatron_rl.launcher", HEAVY),
        ("megatron_rl.pipeline", HEAVY),
        ("megatron_rl.run_folder", HEAVY),
        ("megatron_rl.processes", HEAVY),
        ("megatron_rl.pulse", HEAVY),
        ("megatron_rl.watchdog", {"vllm", "transformers"}),
        ("megatron_rl.rollout.vllm_plugin", HEAVY),
        ("megatron_rl.rollout.samples", HEAVY),
        ("megatron_rl.algorithms.advantages", HEAVY),
        ("megatron_rl.algorithms.losses", HEAVY - {"torch"}),
        ("megatron_rl.policy.batch", HEAVY - {"torch"}),
        ("megatron_rl.policy.log_probs", HEAVY - {"torch"}),
        ("megatron_rl.policy.policy", {"vllm", "transformers"}),
        ("converters.hf_config", HEAVY | {"megatron_rl"}),
        ("converters.families", HEAVY - {"torch"} | {"megatron_rl"}),
        ("converters.hf_folder", HEAVY - {"torch"} | {"megatron_rl"}),
        # torch.distributed.checkpoint brings sympy.
        ("converters.convert", HEAVY - {"torch", "sympy"} | {"megatron_rl"}),
        ("converters.compare", HEAVY - {"torch", "sympy"} | {"megatron_rl"}),
        ("converters.model", HEAVY - {"torch", "sympy", "megatron"} | {"megatron_rl"}),
        ("verifiers", HEAVY - {"sympy"} | {"megatron_rl", "converters"}),
        ("verifiers.pool", HEAVY - {"sympy"} | {"megatron_rl", "converters"}),
        ("verifiers.jsonl", HEAVY - {"sympy"} | {"megatron_rl", "converters"}),
    ],
)
def test_a_module_brings_along_only_what_it_may(module: str, forbidden: set[str]) -> None:
    assert not loaded_by(module) & forbidden


def test_the_measurement_sees_what_is_imported() -> None:
    assert loaded_by("megatron_rl.policy.batch") >= {"torch", "megatron_rl"}
