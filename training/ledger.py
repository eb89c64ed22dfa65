"""Storages booked from birth to end, and the rules of CUDA for tensors without data, for training.memory."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


class Ledger(TorchDispatchMode):
    """Books every storage that an operation makes while the mode is on, and when it goes.

    `held`: tensors from before, whose views are no new storage.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.changes: list[tuple[int, int]] = []
        """(number of the storage, bytes; negative when it goes), in order."""
        self.live = {tensor.untyped_storage()._cdata: -1 for tensor in held}
        """Address -> number; -1 what is held."""
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._book(tensor.untyped_storage())
        return out

    def _book(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self.live:
            return
        self.live[address] = self.count
        self.changes.append((self.count, storage.nbytes()))
        weakref.finalize(storage, self._strike, address, self.count, storage.nbytes()).atexit = False
        self.count += 1

    def _strike(self, address: int, number: int, size: int) -> None:
        self.live.pop(address, None)
        self.changes.append((number, -size))

    def numbers(self, tensors: Iterable[Tensor]) -> set[int]:
        """Those of live tensors that were booked."""
        addresses = (tensor.untyped_storage()._cdata for tensor in tensors)
        return {self.live[address] for address in addresses if address in self.live}

    def at_peak(self, marked: set[int]) -> tuple[int, int]:
        """(bytes of the marked storages, bytes of the others) when their sum was largest."""
        held, best = [0, 0], (0, 0)
        for number, size in self.changes:
            held[number not in marked] += size
            if sum(held) > sum(best):
                best = (held[0], held[1])
        return best


class LikeCuda(TorchFunctionMode):
    """autocast and fused attention as on a GPU, for meta tensors, which have neither.

    `dtype` None leaves all in the tensors' own. `kernel`: the fused attention to account for. The lists are
    those of autocast that our networks meet:
    https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
    """

    LOW = frozenset({"linear", "conv1d", "conv2d", "scaled_dot_product_attention"})
    FULL = frozenset({"layer_norm", "group_norm"})

    def __init__(self, dtype: torch.dtype | None, kernel: Callable[..., Any]) -> None:
        super().__init__()
        self.dtype, self.kernel = dtype, kernel
        self.kept: dict[Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.dtype is not None and name in self.LOW | self.FULL:
            cast = self._low if name in self.LOW else _full
            args = [cast(x) for x in args]
            kwargs = {key: cast(x) for key, x in (kwargs or {}).items()}
        if name == "scaled_dot_product_attention":
            return self.kernel(*args)[0]
        return func(*args, **(kwargs or {}))

    def _low(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if self.kept is None or not (x.is_leaf and x.requires_grad):
            return x.to(self.dtype)
        return self.kept.setdefault(x, x.to(self.dtype))

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward: autocast keeps its casts of trainable weights until it is left."""
        self.kept = {}
        with self:
            yield
        self.kept = None

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        """torch's checkpoint, whose recomputation follows the same rules."""
        contexts = (contextlib.nullcontext(), self)
        return checkpoint(layer, *args, use_reentrant=False, context_fn=lambda: contexts)


def _full(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else x


def attention_on_cuda(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(queries, keys, values, None, queries.requires_grad)


def attention_on_cpu(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)
