"""What a step of a recipe is."""

from abc import ABC, abstractmethod

from megatron_rl.curation.sources import Candidate


class Step(ABC):
    """Of one run over a dataset, whose problems it sees in their order; a dataclass of its settings."""

    @abstractmethod
    def why_not(self, candidate: Candidate) -> str | None:
        """Why a problem is left out, or None."""

    def close(self) -> None:  # noqa: B027
        """Let go of what the step holds."""
