"""How strongly a category follows people's preferences: its DPO adapter, at another scale than it was merged.

`training.merge` keeps the adapter beside the merged weights: `adapters/horse.safetensors` beside
`horse.safetensors`. Its metadata names the file that it is merged into (`merged`, a SHA-256) and the weights
it was trained over (`stage1`, a hash). At strength s a weight is W + (s - 1) alpha / rank B A, in float32,
then rounded to the type of the file as a merge is: 1 is W itself, 0 is stage 1's but for that rounding.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from huvidpo.catalog import adapter_path
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.errors import CheckpointError, HuViDPOError
from huvidpo.files import hash_file
from huvidpo.lora import merge, pair_halves

KEPT = 4  # networks at other strengths, each as large as a category's


class NoRoom(HuViDPOError):
    """As many networks at other strengths as may be in memory are waited for."""


def write_adapter(weights: Path, adapters: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Keep the adapter that is merged into `weights`, a file, beside it. `metadata`: lora_rank, lora_alpha,
    stage1 and what else is known of it.
    """
    save_tensors(adapter_path(weights), adapters, {**metadata, "merged": hash_file(weights)})
    return adapter_path(weights)


def lora_alpha(file: Path, metadata: Mapping[str, str], adapters: Mapping[str, Tensor]) -> float:
    """The alpha a LoRA was trained with. Raises CheckpointError if its file does not say, or is of another
    rank than it says.
    """
    try:
        rank, alpha = int(metadata["lora_rank"]), float(metadata["lora_alpha"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} does not say its lora_rank and lora_alpha in its metadata") from error
    ranks = {len(down) for down, _ in pair_halves(adapters).values()}
    if ranks - {rank}:
        raise CheckpointError(f"{file} says lora_rank {rank}; its tensors have rank {sorted(ranks)}")
    return alpha


def at_strength(tensors: Mapping[str, Tensor], weights: Path, strength: float) -> dict[str, Tensor]:
    """`tensors`, read from the file `weights`, with its adapter counted `strength` times.

    Raises CheckpointError where there is no adapter beside it, or that of other weights.
    """
    file = adapter_path(weights)
    adapters, metadata = load_tensors(file), read_metadata(file)
    if metadata.get("merged") != hash_file(weights):
        raise CheckpointError(f"{file} is not the adapter that was merged into {weights}: merge both again")
    alpha = lora_alpha(file, metadata, adapters)
    changed = merge(tensors, adapters, (strength - 1) * alpha)
    return {**tensors, **{name: tensor.to(tensors[name].dtype) for name, tensor in changed.items()}}


@dataclass(eq=False)
class Scaled:
    """What runs a category at another strength. `sha256`: of the file of weights it was made of."""

    network: Any
    sha256: str


class Strengths:
    """The networks of categories at strengths other than 1, at most `most` in memory.

    Whoever will run one holds what `make` gave; of those that nobody holds, the latest used stay. `files`: of
    weights, by category. `never`: why none can be had at all, "" if they can.
    """

    def __init__(self, load: Callable[[str, float], Scaled], files: Mapping[str, Path], never: str = ""):
        self._load, self._files, self.never = load, files, never
        self.most = KEPT
        self._there: WeakValueDictionary[tuple[str, float], Scaled] = WeakValueDictionary()
        self._used: OrderedDict[tuple[str, float], Scaled] = OrderedDict()
        self._table, self._making = Lock(), Lock()

    def allow(self, most: int) -> None:
        """As many in memory as there is room for."""
        self.most = min(self.most, most)
        if not self.most:
            self.never = self.never or "the GPU has no memory for another network of a category"

    def refusal(self, category: str) -> str:
        """Why the category has its own strength only; "" if it has others."""
        if self.never:
            return self.never
        if category not in self._files or not adapter_path(self._files[category]).is_file():
            return f"the weights of {category} came without the adapter of their preferences"
        return ""

    def find(self, category: str, strength: float) -> Scaled | None:
        """What was made before and is there still."""
        key = category, strength
        with self._table:
            scaled = self._there.get(key)
            if scaled is not None:
                self._used[key] = scaled
                self._used.move_to_end(key)
            return scaled

    def make(self, category: str, strength: float) -> Scaled:
        """Found or loaded, which takes seconds. Raises NoRoom, CheckpointError, EngineError."""
        with self._making:
            if scaled := self.find(category, strength):
                return scaled
            with self._table:
                while self._used and len(self._there) >= self.most:
                    self._used.popitem(last=False)
                if len(self._there) >= self.most:
                    raise NoRoom(f"{self.most} other strengths of preferences are waited for")
            scaled = self._load(category, strength)
            with self._table:
                self._there[category, strength] = self._used[category, strength] = scaled
            return scaled

    def forget(self, category: str) -> None:
        """Its weights are others now."""
        with self._table:
            for key in [key for key in self._there if key[0] == category]:
                self._used.pop(key, None)
                self._there.pop(key, None)
