"""Steps that leave out what an earlier problem has said."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from megatron_rl.curation.sources import Candidate
from megatron_rl.curation.step import Step
from megatron_rl.curation.text import words

_OPERATOR = re.compile(r"[-+<>=\u00f7\u00d7*/^()|!%\u2212\u2260\u2264\u2265\u221a]")
_NUMBER = re.compile(r"\d+")


@dataclass
class ExactDuplicates(Step):
    """Statements of the same words and operators as an earlier one."""

    def __post_init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def why_not(self, candidate: Candidate) -> str | None:
        said = " ".join([*words(candidate.problem.question), *_OPERATOR.findall(candidate.problem.question)])
        digest = hashlib.blake2b(said.encode(), digest_size=16).digest()
        first = self._first.setdefault(digest, candidate.problem.id)
        return None if first == candidate.problem.id else f"as {first}"


@dataclass
class NearDuplicates(Step):
    """Statements most of whose runs of words an earlier one has (MinHash: Broder, 1997).

    A statement with other numbers or another reference is another problem, and stays.
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
        own_answer = (tuple(_NUMBER.findall(candidate.problem.question)), candidate.problem.answer)
        for other in sorted(self._index.query(own)):
            hashes, answer = self._hashes[other]
            if answer == own_answer and own.jaccard(hashes) >= self.threshold:
                return f"like {other}"
        self._index.insert(candidate.problem.id, own)
        self._hashes[candidate.problem.id] = (own, own_answer)
        return None
