"""What the two sides of a connection say before it is a link."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import trio
from libp2p.abc import IHost, INetConn
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from gossipfl.identity import PeerId
from gossipfl.transports.libp2p.admission import Admission
from gossipfl.transports.libp2p.link import Link
from gossipfl.transports.libp2p.wire import BULK, CONTROL, PROTOCOL, Greeting, Refused
from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_stream import YamuxStream


class Greeter:
    """Speaks for one start of one node, and makes links of connections that have been greeted."""

    def __init__(self, admission: Admission, federation: bytes, instance: bytes, window_bytes: int) -> None:
        self._admission = admission
        self._federation = federation
        self._instance = instance
        self._window_bytes = window_bytes

    def greeting(self, lane: int) -> bytes:
        """Return what this side says first on a lane."""
        return Greeting(self._federation, self._instance, lane).pack()

    def agrees(self, greeting: Greeting) -> bool:
        """Tell whether the other side belongs to the same federation."""
        return greeting.federation == self._federation

    async def greet(self, host: IHost, conn: INetConn, peer: PeerId) -> Link:
        """Open the lanes of a connection that this side has made; raises Refused, and whatever the library does."""
        control, answer = await self._open_lane(host, conn, CONTROL)
        if not self.agrees(answer):
            self._admission.refuse("federation", peer)
            raise Refused("federation")
        link = self.link(peer, conn, control, answer, dialled=True)
        with contextlib.suppress(Refused):
            link.bulk, _ = await self._open_lane(host, conn, BULK)
        return link

    async def _open_lane(self, host: IHost, conn: INetConn, lane: int) -> tuple[YamuxStream, Greeting]:
        stream = await conn.new_stream()
        client: Any = cast("Any", host).multiselect_client
        await client.select_one_of((TProtocol(PROTOCOL),), MultiselectCommunicator(stream))
        opened = cast("YamuxStream", cast("Any", stream).muxed_stream)
        await opened.write(self.greeting(lane))
        return opened, await Greeting.read(opened)

    def link(self, peer: PeerId, conn: INetConn, control: YamuxStream, greeting: Greeting, *, dialled: bool) -> Link:
        """Return the link that a connection is, once the other side has said who it is."""
        muxed = cast("Yamux", conn.muxed_conn)
        return Link(
            peer=peer,
            conn=conn,
            muxed=muxed,
            control=control,
            instance=greeting.instance,
            dialled=dialled,
            address="".join(map(str, muxed.get_transport_addresses())),
            opened_at=trio.current_time(),
            window_bytes=self._window_bytes,
        )
