"""Ports of this machine that belong to a run before anything listens on them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from gossipfl.errors import TransportUnavailable

LOOPBACK = "127.0.0.1"


class ReservedPorts:
    """Ports of loopback, each held by a socket that is bound to it and never listens.

    A port is known before its node runs, and nobody else can have it meanwhile. Who is started by the same user and
    asks to share ports (SO_REUSEPORT) can listen on it, and then gets every connection; before and after that, whoever
    dials is refused.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self.numbers: tuple[int, ...] = tuple(held.getsockname()[1] for held in sockets)

    def close(self) -> None:
        """Let go of all ports, as far as this process is concerned: after a fork, the other one still holds them."""
        for held in self._sockets:
            held.close()


@contextlib.contextmanager
def reserve_ports(count: int) -> Iterator[ReservedPorts]:
    """Provide ``count`` free ports for as long as the context lasts; raises TransportUnavailable."""
    with contextlib.ExitStack() as stack:
        try:
            sockets = [stack.enter_context(_reserve()) for _ in range(count)]
        except OSError as error:
            raise TransportUnavailable(
                f"cannot reserve {count} ports on {LOOPBACK}: {error.strerror}; run fewer nodes"
            ) from None
        yield ReservedPorts(sockets)


def _reserve() -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((LOOPBACK, 0))  # a port that the kernel chooses is never one that somebody shares
    except OSError:
        held.close()
        raise
    return held
