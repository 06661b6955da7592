"""The saboteur's seat: between an agent and its real transport."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from math import isfinite

from gossipfl.errors import TransportClosed
from gossipfl.testbed.saboteurs.base import Parcel, Saboteur
from gossipfl.transports.base import LinkEvent, PeerId, Received, Transport, check_frame


class SabotagedTransport(Transport):
    """``inner``, with a saboteur that sees, and may change, everything that goes through.

    ``counters`` are those of ``inner``: they count what really goes to the wire.
    """

    def __init__(self, inner: Transport, saboteur: Saboteur) -> None:
        self.me = inner.me
        self.peers = inner.peers
        self.counters = inner.counters
        self.shares_wire = inner.shares_wire
        self._inner = inner
        self._saboteur = saboteur
        self._acting: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the transport below, and the saboteur's clock."""
        await self._inner.start()
        if isfinite(self._saboteur.every_s):
            self._acting = asyncio.create_task(self._act(), name=f"saboteur[{self.me}].act")

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Send what the saboteur makes of the frame; a frame that it keeps back counts as sent."""
        check_frame(frame, recipients, self.peers)
        if self._closed:
            raise TransportClosed("the transport was closed")
        parcel = Parcel(tuple(recipients), bytes(frame), bulk)
        return await self._send(self._saboteur.pass_on(parcel))

    async def _send(self, parcels: Collection[Parcel]) -> bool:
        sent = True
        for parcel in parcels:
            # What the saboteur kept back may be for somebody who is no peer any more.
            recipients = [peer for peer in parcel.recipients if peer in self.peers]
            sent = await self._inner.send(recipients, parcel.frame, bulk=parcel.bulk) and sent
        return sent

    async def _act(self) -> None:
        """Let the saboteur speak unasked; it never catches up on what a busy machine made it miss."""
        with contextlib.suppress(TransportClosed):
            while True:
                await asyncio.sleep(self._saboteur.every_s)
                await self._send(self._saboteur.act())

    async def receive(self) -> Received:
        """Return the next frame, which the saboteur has seen."""
        received = await self._inner.receive()
        self._saboteur.overhear(received.frame)
        return received

    async def events(self) -> LinkEvent:
        """Return the next event of the transport below."""
        return await self._inner.events()

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Change those of the transport below."""
        self.peers = frozenset(peers)
        try:
            await self._inner.change_peers(peers, members)
        finally:
            self.peers = self._inner.peers

    async def close(self) -> None:
        """Silence the saboteur and close the transport below; raises what went wrong while the saboteur acted."""
        self._closed = True
        acting = self._acting
        if acting is not None:
            acting.cancel()
            await asyncio.wait([acting])
        await self._inner.close()
        if acting is not None and not acting.cancelled():
            acting.result()
