"""What every command line of the project has around its work: one line for an error, and who may run it."""

import errno
import os
import sys
from collections.abc import Callable

from huvidpo.errors import HuViDPOError
from huvidpo.files import say

FAILED = 2
"""Exit status of what cannot be done, said in one line on stderr."""
OF_DISKS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
}  # fmt: skip


def run(name: str, work: Callable[[], int], *, several: bool = False) -> int:
    """Exit status of the command `name`: what `work` returns, FAILED where it raises an error of ours or of a
    disk. Only with `several` may it be one of several processes, which would all write the same files.
    """
    _hide_bars()
    if launched() > 1 and not several:
        text = f"got {launched()} processes, it runs in one: start it without torchrun or accelerate launch"
    else:
        try:
            return work()
        except HuViDPOError as error:
            text = str(error)
        except OSError as error:
            if error.errno not in OF_DISKS:
                raise
            text = say(error)
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"{name}: {text}", file=sys.stderr)
    elif several:  # it may be alone with its error
        print(f"{name}, process {rank}: {text}", file=sys.stderr)
    return FAILED


def launched() -> int:
    """How many processes a launcher (torchrun, accelerate launch, mpirun) says it started."""
    sizes = (os.environ.get(name, "") for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return max((int(size) for size in sizes if size.isdigit()), default=1)


def quiet_libraries() -> None:
    """Load diffusers and transformers without the bars and notes that would bury ours."""
    import diffusers.utils.logging  # noqa: F401
    import transformers.utils.logging  # noqa: F401

    _hide_bars()


def _hide_bars() -> None:
    """Of libraries that are loaded: only who needs them pays for loading them."""
    for name in ("diffusers.utils.logging", "transformers.utils.logging"):
        if name in sys.modules:
            sys.modules[name].disable_progress_bar()
