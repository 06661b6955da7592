"""Frames between the protocol core and the wire."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gossipfl.errors import TransportClosed
from gossipfl.gossip.effects import Send
from gossipfl.transports.base import Transport

QUEUED_FRAMES = {False: 256, True: 64}
"""Frames that may wait, urgent and bulk (True) ones: chunks are about 1 MB each, and grants ask for no more at once."""


class Outgoing:
    """Two bounded queues beside each other: status messages never wait behind chunks.

    Where one is full its oldest frame gives way and is counted in ``dropped``; the protocol above mends losses.
    """

    def __init__(self) -> None:
        self._queues = {bulk: deque[Send](maxlen=frames) for bulk, frames in QUEUED_FRAMES.items()}
        self._filled = {bulk: asyncio.Event() for bulk in QUEUED_FRAMES}
        self._sending = 0
        self.dropped = 0

    def put(self, send: Send) -> None:
        """Take a frame, at once."""
        queue = self._queues[send.bulk]
        self.dropped += len(queue) == QUEUED_FRAMES[send.bulk]
        queue.append(send)
        self._filled[send.bulk].set()

    @property
    def idle(self) -> bool:
        """Whether everything has been handed to the wire."""
        return not (any(self._queues.values()) or self._sending)

    async def forward(self, transport: Transport, on_empty: Callable[[], None], *, bulk: bool) -> None:
        """Hand the frames of one queue to the wire until that is closed; calls ``on_empty`` whenever none is left."""
        queue, filled = self._queues[bulk], self._filled[bulk]
        while True:
            while not queue:
                filled.clear()
                on_empty()
                await filled.wait()
            send = queue.popleft()
            self._sending += 1
            try:
                await transport.send(send.recipients, send.frame)
            except TransportClosed:
                return
            finally:
                self._sending -= 1
