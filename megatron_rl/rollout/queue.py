"""The one queue of a round of generation, shared by all engines of the job through its key-value store.

Samples wait in one order. Every engine is dealt an equal hand of the first ones and draws the next, one by one, from a
counter; what an engine leaves behind when it dies is put at the end, for whoever draws next. The same store tells the
ranks when to meet: at the end of the round, or because an engine needs weights.
"""

from collections.abc import Sequence

import torch.distributed as dist


class SampleQueue:
    """One rank's view of the queue of a round.

    Args:
        name: of the round, unique in the life of the store.
        order: numbers of the samples, the first to be generated first; the same on every rank.
    """

    def __init__(self, store: dist.Store, name: str, order: Sequence[int]) -> None:
        self._store, self._name, self._order = store, name, order
        self._dealt = 0
        self._ticket: int | None = None
        self._meetings = 0

    def deal(self, player: int, players: int, hand: int) -> list[int]:
        """The first samples of engine `player`: every `players`-th one, at most `hand`; called before `draw`, and by
        every engine with the same `players` and `hand`."""
        self._dealt = min(len(self._order), players * hand)
        return list(self._order[player : self._dealt : players])

    def draw(self) -> int | None:
        """The next sample that nobody has; None: there is none at the moment."""
        if self._ticket is None:
            self._ticket = self._dealt + self._store.add(self._key("drawn"), 1) - 1
        if self._ticket < len(self._order):
            number = self._order[self._ticket]
        elif self._store.check([self._key(f"sample-{self._ticket}")]):
            number = int(self._store.get(self._key(f"sample-{self._ticket}")))
        else:  # the ticket is for what may still be given back
            return None
        self._ticket = None
        return number

    def give_back(self, numbers: Sequence[int]) -> None:
        """Put samples that this rank's engine has not finished at the end of the queue."""
        for number in numbers:
            place = self._append()
            if place == self._ticket:  # to be drawn by an engine that lives
                place, self._ticket = self._append(), None
            self._store.set(self._key(f"sample-{place}"), str(number))

    def _append(self) -> int:
        return len(self._order) + self._store.add(self._key("returned"), 1) - 1

    def finish(self, count: int) -> int:
        """Note that `count` more samples have ended; how many have by now, of all ranks."""
        return self._store.add(self._key("finished"), count)

    @property
    def is_finished(self) -> bool:
        """Every sample has ended."""
        return self.finish(0) >= len(self._order)

    def call_meeting(self) -> None:
        """Ask all ranks to meet."""
        self._store.add(self._key("meetings"), 1)

    @property
    def is_meeting_called(self) -> bool:
        """A meeting was asked for and not yet held."""
        return self._store.add(self._key("meetings"), 0) > self._meetings

    def hold_meeting(self) -> None:
        """Note that the ranks have met."""
        self._meetings += 1

    def _key(self, name: str) -> str:
        return f"{self._name}/{name}"
