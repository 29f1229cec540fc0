"""The order in which a run visits its problems, epoch after epoch."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from megatron_rl.config.schema import GRPOConfig
from megatron_rl.errors import RunStopped

Keep = Callable[[int, int], bool]
"""(problem, epoch): whether the epoch visits it."""


@dataclass(slots=True)
class ProblemStream:
    """Problems by their index, each once per epoch, in a permutation of its own (file order without `shuffle`).

    Batches run across epoch borders, so every batch is full, also when it is larger than the data. The order follows
    from the seed, and where an epoch leaves problems out from `keep`, which is asked when the epoch begins.

    Attributes:
        epoch: that of the problem taken last, from 0; -1 before the first.
        pending: what is left of it, in order.
    """

    num_problems: int
    seed: int
    shuffle: bool
    keep: Keep = lambda problem, epoch: True
    epoch: int = -1
    pending: list[int] = field(default_factory=list)

    @property
    def next_epoch(self) -> int:
        """That of the problem taken next."""
        return self.epoch if self.pending else self.epoch + 1

    def take(self, count: int) -> list[int]:
        """The next problems.

        Raises:
            RunStopped: an epoch has none left.
        """
        taken: list[int] = []
        while len(taken) < count:
            if not self.pending:
                self._begin_epoch()
            missing = count - len(taken)
            taken += self.pending[:missing]
            del self.pending[:missing]
        return taken

    def _begin_epoch(self) -> None:
        self.epoch += 1
        order = list(range(self.num_problems))
        if self.shuffle:
            random.Random(f"data order, seed {self.seed}, epoch {self.epoch}").shuffle(order)
        self.pending = [problem for problem in order if self.keep(problem, self.epoch)]
        if not self.pending:
            raise RunStopped(
                f"epoch {self.epoch + 1}: grpo.epoch_filter leaves none of the {self.num_problems} problems, all have "
                "samples that all passed or all failed; end the stage, or raise grpo.epoch_filter_keep_hard"
            )

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here."""
        return {"epoch": self.epoch, "pending": list(self.pending)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from another stream's state."""
        self.epoch, self.pending = state["epoch"], list(state["pending"])


def epoch_filter(config: GRPOConfig, pass_rates: Mapping[int, float], seed: int) -> Keep:
    """Cascade's (arXiv 2512.13607): problems that teach nothing are left out of an epoch, but for a few.

    Args:
        pass_rates: of each problem's last samples; asked anew at every epoch.
    """
    return partial(_teaches, config, pass_rates, seed)


def _teaches(config: GRPOConfig, pass_rates: Mapping[int, float], seed: int, problem: int, epoch: int) -> bool:
    shares = {0.0: config.epoch_filter_keep_hard, 1.0: config.epoch_filter_keep_easy}
    share = shares.get(pass_rates.get(problem, 0.5), 1.0)
    return random.Random(f"epoch filter, seed {seed}, epoch {epoch}, problem {problem}").random() < share
