"""The samples of an evaluation that is under way, each kept the moment it has its verdict.

OUT/journal/rank_N_*.jsonl    a digest of what is asked for, then one sample a line; removed at the end
"""

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from megatron_rl.errors import InputError
from megatron_rl.experience import ScoredSample
from megatron_rl.rollout.samples import Sample, SampleRequest
from verifiers.verdict import Result, Verdict


class EvaluationJournal:
    """This rank's view.

    Args:
        folder: OUT/journal.
        asked: all that samples depend on; JSON.
    """

    def __init__(self, folder: Path, asked: Any, rank: int) -> None:
        self._folder = folder
        self._asked = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self._prefix = f"rank_{rank}_"
        self._lock, self._is_open = threading.Lock(), True
        self._file: TextIO | None = None

    def read(self, prompts: Sequence[Sequence[int]]) -> list[ScoredSample]:
        """What earlier starts have left, of all ranks; each sample once.

        Args:
            prompts: token ids of the benchmark's prompts.

        Raises:
            InputError: they were asked for something else, or a file is damaged.
        """
        found = {}
        for path in sorted(self._folder.glob("rank_*.jsonl")):
            lines = _whole_lines(path)
            if next(lines, self._asked) != self._asked:
                raise InputError(
                    f"{path}: holds samples of another model, benchmark or setting; remove {self._folder}, or give "
                    "another --out"
                )
            try:
                for sample in (_sample(json.loads(line), prompts) for line in lines):
                    found[sample.prompt_index, sample.sample.request.sample_index] = sample
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(f"{path}: damaged ({error!r}); remove it") from error
        return list(found.values())

    def keep(self, sample: ScoredSample) -> None:
        """Write down a sample, from any thread; one that could not be verified is left to the next start."""
        if sample.result.verdict is Verdict.INFRA_ERROR:
            return
        with self._lock:
            if not self._is_open:
                return
            if self._file is None:  # a file of its own for each start: an earlier one's may end in a torn line
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor, _ = tempfile.mkstemp(".jsonl", self._prefix, self._folder)
                self._file = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115
                self._file.write(self._asked + "\n")
            self._file.write(json.dumps(_record(sample)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """What is still to be kept is not."""
        with self._lock:
            self._is_open = False
            if self._file is not None:
                self._file.close()

    def remove(self) -> None:
        """The evaluation is done, and every rank's view closed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _whole_lines(path: Path) -> Iterator[str]:
    """All but the last one, where that is torn."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        yield from (line.removesuffix("\n") for line in file if line.endswith("\n"))


def _record(scored: ScoredSample) -> dict[str, Any]:
    sample = scored.sample
    return {
        "prompt_index": scored.prompt_index,
        "sample_index": sample.request.sample_index,
        "seed": sample.request.seed,
        "length": sample.length,
        "text": sample.text,
        "truncated": sample.truncated,
        "result": asdict(scored.result),
    }


def _sample(record: dict[str, Any], prompts: Sequence[Sequence[int]]) -> ScoredSample:
    prompt = record["prompt_index"]
    sample = Sample(
        request=SampleRequest(prompt, record["sample_index"], tuple(prompts[prompt]), record["seed"]),
        length=int(record["length"]),
        tokens=(),
        log_probs=(),
        text=record["text"],
        truncated=record["truncated"],
        policy_version=0,
    )
    return ScoredSample(sample, Result.from_record(record["result"]))
