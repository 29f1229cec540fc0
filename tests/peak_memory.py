"""How much memory tensors take, on any device."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Bytes of all storages that came into being inside the block and still live, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), new=False)  # what is not known yet was there before
        output = func(*args, **(kwargs or {}))
        self._see(output, new=True)
        self.peak = max(self.peak, self.now)
        return output

    def _see(self, values: Any, new: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                size = storage.nbytes() if new else 0
                self._known[storage._cdata] = size
                self.now += size
                weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)
