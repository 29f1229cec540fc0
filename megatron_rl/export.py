"""The trained policy as a Hugging Face folder, made beside the training, and the proof that it is the policy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_rl.config.schema import TrainConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.errors import RunStopped
from megatron_rl.pulse import tick
from megatron_rl.run_folder import RunFolder

_CHECKED_PROMPTS = 16
_DEADLINE_SECONDS = 3 * 3600.0
_HEEDLESS = ("sh", "-c", 'trap "" TERM; exec "$@"', "sh")
"""Of SIGTERM, which Slurm sends to every process of a job: the rank that started it is the one to heed it."""


class BackgroundExport:
    """Converts checkpoints in a process of their own, one at a time; owned by the main rank.

    A checkpoint that is saved while another is being converted is not exported, so that training never waits; the last
    one always is. That an earlier one could not be exported is only told, with `warn`.
    """

    def __init__(self, run: RunFolder, warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._log = run.logs / "export.log"
        self.step = 0
        """The newest step that was given to it."""

    def start(self, step: int, destination: Path) -> None:
        """Convert the checkpoint of `step` to the Hugging Face folder `destination`."""
        self._settle()
        self.step = step
        self._run.logs.mkdir(parents=True, exist_ok=True)
        command = ["convert", "megatron-to-hf", str(self._run.checkpoint(step)), str(destination), "--overwrite"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*_HEEDLESS, sys.executable, "-m", "megatron_rl", *command], stdout=log, stderr=subprocess.STDOUT
            )

    def is_busy(self) -> bool:
        """A conversion is under way."""
        if self._process is not None and self._process.poll() is not None:
            self._settle()
        return self._process is not None

    def _settle(self) -> None:
        try:
            self.wait()
        except RunStopped as failure:
            self._warn(f"step {self.step}: {failure}")

    def wait(self) -> None:
        """Until the conversion under way, if there is one, is done.

        Raises:
            RunStopped: it failed, or takes longer than three hours.
        """
        if self._process is None:
            return
        tick(allow=_DEADLINE_SECONDS)
        try:
            status = self._process.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        tick()
        self._process = None
        if status != 0:
            raise RunStopped(f"the export to Hugging Face ended with status {status}; see {self._log}")


def check_export(run: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """Generate greedily with transformers from the exported folder and compare with the engine's last validation.

    Returns:
        The folder's path and, where the run validated greedily, how many of the prompts gave the same text.
    """
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[str, Any] = {"path": str(run.hf)}
    name = config.data.domain.value
    samples = run.samples(f"validation_{name}_step_{config.max_num_steps}")
    if config.validation.temperature != 0 or config.generation is None or not samples.is_file():
        return found
    tokenizer = load_tokenizer(run.hf)
    model = AutoModelForCausalLM.from_pretrained(
        run.hf, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    problems = {problem.id: problem for problem in load_problems(config.validation.data[name])}
    records = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()][:_CHECKED_PROMPTS]
    matches = 0
    for record in records:
        prompt = torch.tensor([encode_prompt(tokenizer, problems[record["id"]])])
        with torch.no_grad():
            output = model.generate(prompt, do_sample=False, max_new_tokens=config.generation.max_new_tokens)
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        matches += text == record["response"]
    return found | {"greedy_prompts": len(records), "greedy_matches": matches}
