"""Programs that reach this machine alone: who tries another is refused, as without a network, and written down."""

from __future__ import annotations

import os
from pathlib import Path

_GUARD = """
import os, socket, sys
connect, look_up = socket.socket.connect, socket.getaddrinfo
NEAR = ("127.", "::1", "localhost", "0.0.0.0", socket.gethostname())

def refuse(host):
    if host and not str(host).startswith(NEAR):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{host} {sys.argv}\\n")
        raise OSError(101, "Network is unreachable")

def connect_near(self, address):
    refuse(address[0] if isinstance(address, tuple) else None)
    return connect(self, address)

def look_up_near(host, *more, **named):
    refuse(host)
    return look_up(host, *more, **named)

socket.socket.connect, socket.getaddrinfo = connect_near, look_up_near
"""


def without_network(folder: Path) -> dict[str, str]:
    """The environment of such programs, Python's; `tried` says who tried."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_GUARD)
    where = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": where, "GUARD_LOG": str(folder / "log")}


def tried(folder: Path) -> list[str]:
    """A line for each address that was refused."""
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
