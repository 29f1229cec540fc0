"""The step journal: samples and verdicts since the last checkpoint, which a run that has crashed need not make again.

    journal/step_N_batch_M.safetensors    written when a batch is complete, removed when a checkpoint holds its step

A resumed run makes the updates since its checkpoint anew, on the samples that it had: what it would have generated is
the same. Only whole batches are kept: the rest of one, generated with other neighbours, could differ in its last bit.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from megatron_rl.config.schema import TrainConfig
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.parallel import broadcast_object
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling
from verifiers.metrics import PoolMetrics
from verifiers.verdict import Result, Verdict

_SHAPING = ("policy", "generation", "grpo", "guards", "data", "verifier", "seed")
"""Sections of the config that samples, or the weights which make them, depend on."""


class StepJournal:
    """Of one run; the main rank reads and writes it for all.

    Args:
        step: the run is about to make this one, counted from 0. What is kept from earlier ones is removed, and what
            does not follow on without a gap.
    """

    def __init__(self, folder: Path, config: TrainConfig, is_main: bool, step: int) -> None:
        self._folder, self._is_main = folder, is_main
        shaping = {section: value for section, value in asdict(config).items() if section in _SHAPING}
        if shaping["grpo"] is not None:
            del shaping["grpo"]["max_num_steps"]  # a run may be made longer
        self._shaping = json.dumps(shaping)
        self.steps = 0
        """How many steps have samples from an earlier start."""
        if is_main:
            self.steps = next(n for n in count() if not self._file(step + n, 0).is_file())
            self._remove(lambda kept: not step <= kept < step + self.steps)

    def asked(self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, seed: str) -> str:
        """A digest of all that samples depend on: what is in the journal answers the same, or is of no use.

        Args:
            prompts: token ids of the batch's prompts.
            samples: per prompt.
        """
        words = json.dumps([self._shaping, [list(prompt) for prompt in prompts], samples, asdict(sampling), seed])
        return hashlib.sha256(words.encode()).hexdigest()

    def read(self, step: int, batch: int, asked: str, prompts: Sequence[Sequence[int]]) -> Experience | None:
        """A batch of a step, if it is there and what is asked for; on all ranks, which call it together."""
        found = _read(self._file(step, batch), asked, prompts) if self._is_main else None
        return broadcast_object((found,))[0]

    def write(self, step: int, batch: int, asked: str, experience: Experience) -> None:
        """Keep a batch of a step. Raises OSError; then nothing of it is kept."""
        if not self._is_main:
            return
        self._folder.mkdir(exist_ok=True)
        path = self._file(step, batch)
        temporary = path.with_suffix(".tmp")
        tensors = _tensors(experience)
        try:
            with open(temporary, "wb") as file:
                file.write(save(tensors, {"asked": asked, "sha256": _digest(tensors)}))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def forget(self, step: int) -> None:
        """A checkpoint holds the first `step` steps."""
        if self._is_main:
            self._remove(lambda kept: kept < step)

    def drop(self, step: int) -> None:
        """The samples of a step stopped the run: they are to be made anew."""
        if self._is_main:
            self._remove(lambda kept: kept == step)

    def _file(self, step: int, batch: int) -> Path:
        return self._folder / f"step_{step}_batch_{batch}.safetensors"

    def _remove(self, is_useless: Callable[[int], bool]) -> None:
        for path in self._folder.glob("step_*_batch_*"):
            if path.suffix == ".tmp" or is_useless(int(path.name.split("_")[1])):
                path.unlink()


def _tensors(experience: Experience) -> dict[str, np.ndarray]:
    """Tokens and log-probs of all samples behind each other, and the rest as JSON: a header would be too short."""
    samples = [scored.sample for scored in experience.samples]
    rest = {
        "samples": [
            {
                "prompt_index": scored.prompt_index,
                "sample_index": scored.sample.request.sample_index,
                "seed": scored.sample.request.seed,
                "length": scored.sample.length,
                "text": scored.sample.text,
                "truncated": scored.sample.truncated,
                "policy_version": scored.sample.policy_version,
                "result": asdict(scored.result),
            }
            for scored in experience.samples
        ],
        "pools": [asdict(pool) for pool in experience.pools],
        "generation_seconds": experience.generation_seconds,
        "verification_wait_seconds": experience.verification_wait_seconds,
        "engine_restarts": experience.engine_restarts,
        "engine_recovery_seconds": experience.engine_recovery_seconds,
    }
    return {
        "tokens": np.array([token for sample in samples for token in sample.tokens], dtype=np.int32),
        "log_probs": np.array([value for sample in samples for value in sample.log_probs], dtype=np.float64),
        "rest": np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8),
    }


def _read(path: Path, asked: str, prompts: Sequence[Sequence[int]]) -> Experience | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if metadata.get("asked") != asked or metadata.get("sha256") != _digest(tensors):
        return None
    return _experience(tensors, prompts)


def _experience(tensors: dict[str, np.ndarray], prompts: Sequence[Sequence[int]]) -> Experience:
    rest = json.loads(tensors["rest"].tobytes())
    tokens, log_probs = tensors["tokens"].tolist(), tensors["log_probs"].tolist()
    samples, begin = [], 0
    for record in rest.pop("samples"):
        prompt, end = record["prompt_index"], begin + record["length"]
        request = SampleRequest(prompt, record["sample_index"], tuple(prompts[prompt]), record["seed"])
        sample = Sample(
            request=request,
            length=record["length"],
            tokens=tuple(tokens[begin:end]),
            log_probs=tuple(log_probs[begin:end]),
            text=record["text"],
            truncated=record["truncated"],
            policy_version=record["policy_version"],
        )
        samples.append(ScoredSample(sample, Result.from_record(record["result"])))
        begin = end
    pools = [_pool(record) for record in rest.pop("pools")]
    return Experience(samples=samples, pools=pools, **rest)


def _pool(record: dict[str, Any]) -> PoolMetrics:
    return PoolMetrics(**record | {"verdicts": {Verdict(name): number for name, number in record["verdicts"].items()}})


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
