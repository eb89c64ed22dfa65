"""How much memory this process may take: of its container's, where it has one, or of the machine's."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # version 2; of version 1 nothing is known here


def limit() -> int:
    """Bytes."""
    try:
        return min(int((CGROUP / "memory.max").read_text()), psutil.virtual_memory().total)
    except (OSError, ValueError):  # no such file; "max"
        return psutil.virtual_memory().total


def available() -> int:
    """Bytes of it that nobody holds; files that were only read count as free."""
    free = psutil.virtual_memory().available
    try:
        held = int((CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        held -= int(facts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return free
    return max(0, min(free, limit() - held))
