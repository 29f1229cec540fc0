"""Steps that leave out what an earlier problem has said."""

import hashlib
from dataclasses import dataclass
from typing import Any

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from megatron_rl.curation.text import words


@dataclass
class ExactDuplicates(Step):
    """Statements of the same words as an earlier one."""

    def __post_init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def why_not(self, candidate: Candidate) -> str | None:
        digest = hashlib.blake2b(" ".join(words(candidate.problem.question)).encode(), digest_size=16).digest()
        first = self._first.setdefault(digest, candidate.problem.id)
        return None if first == candidate.problem.id else f"as {first}"


@dataclass
class NearDuplicates(Step):
    """Statements most of whose runs of words an earlier one has (MinHash: Broder, 1997).

    A statement with other numbers is another problem, and stays.
    """

    threshold: float = 0.8
    """Of the Jaccard similarity of the two sets of runs."""
    run_words: int = 3
    num_permutations: int = 128

    def __post_init__(self) -> None:
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=self.threshold, num_perm=self.num_permutations)
        self._hashes: dict[str, Any] = {}

    def why_not(self, candidate: Candidate) -> str | None:
        from datasketch import MinHash

        found = words(candidate.problem.question)
        runs = {" ".join(found[i : i + self.run_words]) for i in range(max(1, len(found) - self.run_words + 1))}
        own = MinHash(num_perm=self.num_permutations)
        own.update_batch([run.encode() for run in sorted(runs)])
        numbers = tuple(word for word in found if word.isdigit())
        for other in sorted(self._index.query(own)):
            hashes, its_numbers = self._hashes[other]
            if its_numbers == numbers and own.jaccard(hashes) >= self.threshold:
                return f"like {other}"
        self._index.insert(candidate.problem.id, own)
        self._hashes[candidate.problem.id] = (own, numbers)
        return None
