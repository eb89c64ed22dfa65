"""Parts of models on the model hub: only the files that are needed, their size said before they are fetched.

`local` gives where a part lies on this machine. What is in the hub's cache whole is taken from there without
asking anybody; what is not is fetched, with a bar for each file. Large files lie there under the hash the hub
gave them: what comes is held against it, and `check` does that for what came long ago.
"""

import logging
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from huvidpo.catalog import Component
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_file

logger = logging.getLogger(__name__)

NETWORK, TOKENIZER = "a network", "a tokenizer"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers; transformers, new and old
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
WORTH_SAYING = 10**7  # bytes: what is smaller is there before it is read


@dataclass(frozen=True)
class Part:
    """A part of a model: NETWORK, TOKENIZER, or the name of the one file that is wanted of it."""

    source: Component
    holds: str
    half: bool = False
    """Of a network: it runs in half precision, so files in float16, of half the size, will do."""

    @property
    def remote(self) -> bool:
        return not Path(self.source.location).is_absolute()

    def __str__(self) -> str:
        return "/".join(filter(None, (self.source.location, self.source.subfolder)))


@dataclass(frozen=True)
class File:
    """Of a repository; `revision` as a Component's."""

    repo: str
    name: str
    revision: str


def local(source: Component, holds: str, half: bool = False) -> Component:
    """`source` as a folder of this machine, fetched if need be. Raises CheckpointError as `fetch`."""
    part = Part(source, holds, half)
    if not part.remote:
        return source
    fetch([part])
    folder = cached(part)
    if folder is None:
        raise CheckpointError(f"{part}: its files did not come from the hub, try again")
    return Component(str(folder), source.subfolder)


def fetch(parts: Sequence[Part], say: Callable[[str], None] = logger.warning) -> None:
    """Have all `parts` in the hub's cache; `say` is told how much there is to fetch, and where to.

    Raises CheckpointError, in one sentence, for parts that are not whole in the cache while the hub cannot be
    asked, that the hub has not, and for a disk that does not hold them.
    """
    wanted: dict[File, int] = {}
    for part in parts:
        wanted |= _missing(part)
    total, cache = sum(wanted.values()), Path(constants.HF_HUB_CACHE)
    if wanted and total >= WORTH_SAYING:
        free = shutil.disk_usage(_there(cache)).free
        if free < total:
            raise CheckpointError(
                f"{total / 1e9:.1f} GB are to be fetched from the hub, and {cache} has room for "
                f"{free / 1e9:.1f} GB: make room, or set HF_HOME to a folder on another disk"
            )
        repos = ", ".join(sorted({file.repo for file in wanted}))
        say(f"fetching {total / 1e9:.1f} GB in {len(wanted)} files from {repos} into {cache}, once")
    silent = are_progress_bars_disabled()
    try:
        enable_progress_bars()  # transformers switches them off for everybody when it is told to be quiet
        for file in wanted:
            _download(file)
    finally:
        if silent:
            disable_progress_bars()


def check(parts: Sequence[Part]) -> int:
    """Reads every file of `parts` in the hub's cache: how many it held against the hash the hub gave them.
    Raises CheckpointError for one that is damaged, which is removed, so that the next `fetch` has it anew.
    """
    checked = 0
    for part in parts:
        root = cached(part) if part.remote else None
        if root is not None:
            checked += sum(_intact(root / name) for name in needed(part, _files(part, root)))
    return checked


def _intact(file: Path) -> bool:
    """Whether its hash is known; of the large ones, which the hub stores by their SHA-256, it is."""
    stored = file.resolve()
    if not _SHA256.fullmatch(stored.name):
        return False
    if hash_file(stored) == stored.name:
        return True
    file.unlink()
    stored.unlink(missing_ok=True)
    raise CheckpointError(
        f"{file} is not what the hub holds: it was damaged, and is removed now; fetch it again"
    )


def _missing(part: Part) -> dict[File, int]:
    """Bytes of what is to be fetched for a part."""
    repo, there = part.source.location, part.remote and cached(part)
    # float16 for a network that wants better is second best: the hub may have it in full
    if not part.remote or (there and (part.half or not _only_half(part, there))):
        return {}
    try:
        sizes = {file.rfilename: file.size or 0 for file in _list(part.source)}
    except Exception as error:  # offline, no such repository, no right to it, ...
        if there:
            return {}
        raise CheckpointError(_unreachable(str(part), repo, error)) from error
    names = needed(part, sizes)
    if not names:
        raise CheckpointError(f"{part} on the hub has no files of {part.holds}: name another in the catalog")
    files = [File(repo, name, part.source.revision) for name in names if not _is_cached(part, name)]
    return {file: sizes[file.name] for file in files}


def _only_half(part: Part, root: Path) -> bool:
    return part.holds == NETWORK and any(".fp16" in name for name in needed(part, _files(part, root)))


def _files(part: Part, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in (root / part.source.subfolder).iterdir()]


def cached(part: Part) -> Path | None:
    """The snapshot in the hub's cache that holds the part whole, or None."""
    marks = {NETWORK: ("config.json",), TOKENIZER: TOKENIZER_FILES}
    for name in marks.get(part.holds, (part.holds,)):
        found = _in_cache(part, _path(part, name))
        if isinstance(found, str):
            root = Path(found).parents[len(Path(_path(part, name)).parts) - 1]
            return root if needed(part, _files(part, root)) else None
    return None


def needed(part: Part, names: Collection[str]) -> list[str]:
    """Of the files `names` of a repository those that make the part; none where they do not make it whole."""
    if part.holds == TOKENIZER:
        files = [_path(part, name) for name in TOKENIZER_FILES if _path(part, name) in names]
        words = {name.rpartition("/")[2] for name in files}
        return files if "tokenizer.json" in words or words >= {"vocab.json", "merges.txt"} else []
    if part.holds != NETWORK:
        return [_path(part, part.holds)] if _path(part, part.holds) in names else []
    config = _path(part, "config.json")
    own = [name for name in names if name.rpartition("/")[0] == part.source.subfolder]
    found = weights([name.rpartition("/")[2] for name in own], part.half)
    return [config, *(_path(part, name) for name in found[1])] if found and config in names else []


def weights(names: Collection[str], half: bool = False) -> tuple[str, list[str]] | None:
    """(variant, files) of a network among the file names of its folder; None where no set is whole.

    `half` prefers the variant "fp16", else the plain files, "", come first; safetensors before pickles.
    """
    for suffix in ("safetensors", "bin"):
        for variant in ("fp16", "") if half else ("", "fp16"):
            dotted = f".{variant}" if variant else ""
            for stem in STEMS:
                if (single := f"{stem}{dotted}.{suffix}") in names:
                    return variant, [single]
                index = {f"{stem}.{suffix}.index{dotted}.json", f"{stem}{dotted}.{suffix}.index.json"} & set(
                    names
                )
                number = r"-\d+-of-(?P<count>\d+)"
                forms = (
                    rf"{stem}{re.escape(dotted)}{number}\.{suffix}",
                    rf"{stem}{number}{re.escape(dotted)}\.{suffix}",
                )
                shards = {name: m for name in names for form in forms if (m := re.fullmatch(form, name))}
                if index and shards and {int(m["count"]) for m in shards.values()} == {len(shards)}:
                    return variant, [*sorted(index), *sorted(shards)]
    return None


def _path(part: Part, name: str) -> str:
    return f"{part.source.subfolder}/{name}" if part.source.subfolder else name


def _is_cached(part: Part, name: str) -> bool:
    return isinstance(_in_cache(part, name), str)


def _in_cache(part: Part, name: str) -> Any:
    return try_to_load_from_cache(part.source.location, name, revision=part.source.revision or None)


def _there(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _list(source: Component) -> list[Any]:
    revision = source.revision or None
    info = HfApi().model_info(source.location, revision=revision, files_metadata=True, timeout=20)
    return info.siblings or []


def _download(file: File) -> None:
    try:
        path = hf_hub_download(file.repo, file.name, revision=file.revision or None)
    except Exception as error:
        raise CheckpointError(_unreachable(f"{file.repo}/{file.name}", file.repo, error)) from error
    _intact(Path(path))


def commit_of(part: Part) -> str | None:
    """The commit of the repository that the cache has it of."""
    root = cached(part) if part.remote else None
    return root.name if root else None


def _unreachable(what: str, repo: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{what} is not whole in the hub's cache {constants.HF_HUB_CACHE}, and cannot be fetched ({reason}): "
        f"go online, or copy the repository to $HUVIDPO_WEIGHTS/{repo}"
    )
