"""Steps that leave out what an earlier problem has said."""

import hashlib
from dataclasses import dataclass
from typing import Any

from megatron_rl.curation.text import words
from megatron_rl.data.problems import Problem


@dataclass
class ExactDuplicates:
    """Statements of the same words as an earlier one."""

    def __post_init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def why_not(self, problem: Problem) -> str | None:
        digest = hashlib.blake2b(" ".join(words(problem.question)).encode(), digest_size=16).digest()
        first = self._first.setdefault(digest, problem.id)
        return None if first == problem.id else f"as {first}"


@dataclass
class NearDuplicates:
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

    def why_not(self, problem: Problem) -> str | None:
        from datasketch import MinHash

        found = words(problem.question)
        runs = {" ".join(found[i : i + self.run_words]) for i in range(max(1, len(found) - self.run_words + 1))}
        own = MinHash(num_perm=self.num_permutations)
        own.update_batch([run.encode() for run in sorted(runs)])
        numbers = tuple(word for word in found if word.isdigit())
        for other in sorted(self._index.query(own)):
            hashes, its_numbers = self._hashes[other]
            if its_numbers == numbers and own.jaccard(hashes) >= self.threshold:
                return f"like {other}"
        self._index.insert(problem.id, own)
        self._hashes[problem.id] = (own, numbers)
        return None
