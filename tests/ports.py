"""Ports for servers of tests."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """A port that is free now, and that no client is lent by the system before the server takes it."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = random.randrange(20000, 32000)
            probe.bind(("127.0.0.1", port))
            return port
