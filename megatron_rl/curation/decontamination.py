"""Problems that share a run of n words with a benchmark (9 for math, 14 for code: arXiv 2505.16400, section 3)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.curation.sources import Candidate, read_rows
from megatron_rl.curation.step import Step
from megatron_rl.curation.text import words
from megatron_rl.errors import InputError

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """Words that a text has in common with a problem of a benchmark."""

    benchmark: str
    problem: str
    words: Gram


@dataclass(slots=True)
class NgramIndex:
    """The n-grams of benchmarks. A benchmark's problem of fewer than n words is found only in a text of the same words.

    Looking up every n-gram of a text would take longer than splitting it into words does. Any run of n words holds
    exactly one shorter run, of (n + 1) // 2 words, that begins at a multiple of n // 2 + 1: only those are looked up,
    and the n-grams around one where a benchmark has it.
    """

    size: int
    num_problems: int = 0
    """That were added and have words."""
    _grams: dict[Gram, tuple[str, str]] = field(default_factory=dict)
    _probes: set[Gram] = field(default_factory=set)

    @property
    def _probe_size(self) -> int:
        return (self.size + 1) // 2

    def add(self, benchmark: str, problem: str, text: str) -> None:
        """Of n-grams that several problems have, the first one's counts."""
        found = tuple(words(text))
        if not found:
            return
        self.num_problems += 1
        for gram in _runs(found, min(self.size, len(found))):
            self._grams.setdefault(gram, (benchmark, problem))
        if len(found) >= self.size:
            self._probes.update(_runs(found, self._probe_size))

    def match(self, text: str) -> Match | None:
        """The first run of words, by its place in the text, that a benchmark has; None if there is none."""
        found = tuple(words(text))
        if len(found) < self.size:
            return self._match_gram(found)
        probe, last = self._probe_size, len(found) - self.size
        stride = self.size - probe + 1
        for at in range(0, len(found) - probe + 1, stride):
            if found[at : at + probe] in self._probes:
                for begin in range(max(0, at - stride + 1), min(at, last) + 1):
                    match = self._match_gram(found[begin : begin + self.size])
                    if match is not None:
                        return match
        return None

    def _match_gram(self, gram: Gram) -> Match | None:
        owner = self._grams.get(gram)
        return Match(*owner, gram) if owner is not None else None


def _runs(found: Gram, size: int) -> Iterator[Gram]:
    return (found[begin : begin + size] for begin in range(len(found) - size + 1))


@dataclass
class Decontamination(Step):
    """Problems that share a run of words with one of a benchmark (arXiv 2505.16400, section 3)."""

    ngram: int = MISSING
    """Words of a run; the paper: 9 for math, 14 for code."""
    benchmarks: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; of their columns only `prompt_key` is read, and `id` where there is one."""

    def __post_init__(self) -> None:
        if self.ngram < 1 or not self.benchmarks:
            raise InputError(f"decontamination: ngram={self.ngram}, benchmarks={sorted(self.benchmarks)}; give it both")
        self._index = NgramIndex(self.ngram)
        for name, config in self.benchmarks.items():
            before = self._index.num_problems
            for number, row in read_rows(config):
                text = row.get(config.prompt_key)
                if not isinstance(text, str):
                    raise InputError(f"{config.path or config.hub}:{number}: no text in column {config.prompt_key!r}")
                self._index.add(name, str(row.get("id", number)), text)
            if self._index.num_problems == before:
                raise InputError(f"decontamination: benchmarks.{name}: {config.path or config.hub} holds no problem")

    def why_not(self, candidate: Candidate) -> str | None:
        match = self._index.match(candidate.problem.question)
        return None if match is None else f"{match.benchmark} {match.problem}: {' '.join(match.words)}"
