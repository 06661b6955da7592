"""All links of one node: who dials whom, who is let in, which of two connections stays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Any, cast

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from gossipfl.digest import derive_seed
from gossipfl.errors import MessageError, TransportUnavailable
from gossipfl.identity import Identity, PeerId
from gossipfl.membership import federation_id_of
from gossipfl.transports.back_off import back_off_s
from gossipfl.transports.base import FORMER_PEER
from gossipfl.transports.libp2p.addresses import Address, listenable
from gossipfl.transports.libp2p.admission import Admission, Told
from gossipfl.transports.libp2p.directory import Directory
from gossipfl.transports.libp2p.failures import causes_of, in_words
from gossipfl.transports.libp2p.greeter import Greeter
from gossipfl.transports.libp2p.host import Arrivals, TidyTcp, cannot_listen, make_host, make_room, swarm_of
from gossipfl.transports.libp2p.interfaces import someone_listens
from gossipfl.transports.libp2p.link import RETIRE_S, Desk, Link
from gossipfl.transports.libp2p.neighbour import Neighbour
from gossipfl.transports.libp2p.noise import NotAdmitted
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.wire import BULK, CONTROL, PROTOCOL, Greeting, Refused, refusal
from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_stream import YamuxStream

PATIENCE_S = 1.0
"""How long the second of two sides lets the first one dial."""
STEADY_S = 1.0
"""A link that ends sooner counts as a failed attempt, so that one that always breaks is tried less and less often."""
SETTLE_S = 2.0
"""How long a node that closes waits for its neighbours to have read what it said last."""


class Switchboard:
    """Runs in trio's thread; ``tell`` is called there, too.

    Each neighbour has a keeper that dials it until there is a link, whoever made it. The side with the smaller peer id
    dials first. Where both have dialled at once, the connection that the smaller one has made stays.
    """

    def __init__(
        self,
        identity: Identity,
        members: Collection[PeerId],
        desks: Mapping[PeerId, Desk],
        options: Libp2pOptions,
        instance: bytes,
        tell: Callable[[Told], None],
    ) -> None:
        self._me = identity.peer_id
        self._identity = identity
        self._options = options
        self._tell = tell
        self._neighbours = {peer: Neighbour(self._me, peer, desk) for peer, desk in desks.items()}
        self._admission = Admission(self._me, members, desks, tell)
        self.directory = Directory(identity, members, self._neighbours, options)
        federation = federation_id_of(options.federation)
        self._greeter = Greeter(self._admission, federation, instance, options.window_bytes)
        self._random = Random(derive_seed(0, "libp2p back-off", self._me))
        self._is_holding = False
        self._cuts: set[trio.Event] = set()
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._tcp = TidyTcp()

    # ------------------------------------------------------------------------------------------ life

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and keep links until ``stop``; started with the addresses that it listens on."""
        options = self._options
        await self._check_free()
        self._host = make_host(
            self._identity,
            self._admit,
            self._tcp,
            peers=len(self._neighbours),
            upgrade_s=options.timeout_s,
        )
        self._swarm = swarm_of(self._host)
        self._host.set_stream_handler(TProtocol(PROTOCOL), self._accept)
        failure: TransportUnavailable | None = None
        async with self._host.run([Multiaddr(text) for text in options.listen]):
            try:
                listening = self._listening()
            except TransportUnavailable as error:  # raised outside, lest the library wraps it up
                failure = error
            else:
                await self._hold(listening, task_status)
        self._stopped.set()
        if failure is not None:
            raise failure

    async def _hold(self, listening: list[Address], task_status: Any) -> None:
        self._swarm.register_notifee(cast("Any", Arrivals(self._arrived)))
        async with trio.open_nursery() as self._nursery:
            self._is_holding = True
            self.directory.sign(listening)
            for neighbour in self._neighbours.values():
                self._nursery.start_soon(self._keep, neighbour)
            task_status.started(tuple(map(str, listening)))
            async with self.directory.on_local_network():
                await self._stop.wait()
                self._is_holding = False
                await self._close_links()
            self._nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        """Let ``run`` come to its end, and wait for that."""
        self._stop.set()
        await self._stopped.wait()

    async def settle(self) -> None:
        """Wait, for a bounded time, until all neighbours have read what was handed over."""
        with trio.move_on_after(SETTLE_S):
            async with trio.open_nursery() as nursery:
                for neighbour in self._neighbours.values():
                    if neighbour.link is not None:
                        nursery.start_soon(neighbour.link.settle)

    async def _close_links(self) -> None:
        async with trio.open_nursery() as nursery:
            for conns in list(self._swarm.connections.values()):
                for conn in list(conns):
                    nursery.start_soon(conn.close)

    async def _check_free(self) -> None:
        """Refuse an address that somebody listens on: the library shares ports, and would share it with a stranger."""
        for text in self._options.listen:
            if await someone_listens(listenable(text)):
                raise cannot_listen(text, [f"{text}: the address is in use"])

    def _listening(self) -> list[Address]:
        found = []
        for text in self._options.listen:
            listener = self._swarm.listeners.get(str(Multiaddr(text)))
            if listener is None:
                raise cannot_listen(text, self._tcp.failures)
            found += [listenable(str(address)) for address in listener.get_addrs()]
        return found

    # ------------------------------------------------------------------------------------------ who may come in

    def _admit(self, peer: PeerId) -> None:
        """Called when a handshake has proved who the other side is."""
        if self._stop.is_set():
            raise NotAdmitted("closing")
        reason = self._admission.objection(peer)
        if reason is not None:
            self._admission.refuse(reason, peer)
            raise NotAdmitted(reason)

    def change_peers(self, desks: Mapping[PeerId, Desk], members: Collection[PeerId]) -> None:
        """Have other neighbours and members from now on; one whose desk is another one has ceased to be, and is new."""
        gone = [one for one in self._neighbours.values() if desks.get(one.peer) is not one.desk]
        for one in gone:
            del self._neighbours[one.peer]
        new = [Neighbour(self._me, peer, desk) for peer, desk in desks.items() if peer not in self._neighbours]
        self._neighbours.update({one.peer: one for one in new})
        self._admission.change(members, desks)
        told_early = self.directory.change_members({*members, *desks})
        for one in gone:
            one.drop_all(FORMER_PEER)
            one.wake()
        if self._is_holding:
            make_room(self._swarm, len(self._neighbours))
            self._cut_off({one.peer for one in gone})
            for one in new:
                self._nursery.start_soon(self._keep, one)
            for source, envelope in told_early:
                self.take_record(source, envelope)

    def _cut_off(self, peers: Collection[PeerId]) -> None:
        for conn in self._swarm.get_connections():
            if str(conn.muxed_conn.peer_id) in peers:
                cut = trio.Event()
                self._cuts.add(cut)
                self._nursery.start_soon(self._cut, conn, cut)

    async def _cut(self, conn: INetConn, cut: trio.Event) -> None:
        try:
            await conn.close()
        finally:
            self._cuts.discard(cut)
            cut.set()

    async def all_cut(self) -> None:
        """Return when the connections of former neighbours are closed."""
        for cut in list(self._cuts):
            await cut.wait()

    async def _arrived(self, conn: INetConn) -> None:
        """Give a new connection a bounded time to open a lane."""
        if self._stop.is_set():
            return
        peer = str(conn.muxed_conn.peer_id)
        reason = self._admission.objection(peer)
        if reason is None:
            self._nursery.start_soon(self._expect_lane, conn)
        else:  # it was admitted, and has ceased to be a neighbour since
            self._admission.refuse(reason, peer)
            self._cut_off({peer})

    async def _expect_lane(self, conn: INetConn) -> None:
        muxed = cast("Yamux", conn.muxed_conn)
        if muxed.is_initiator:
            return
        with trio.move_on_after(self._options.timeout_s):
            await muxed.ended.wait()
        if not (muxed.was_greeted or muxed.is_closed):
            self._admission.refuse("no lane", str(muxed.peer_id))
            await conn.close()

    # ------------------------------------------------------------------------------------------ accepting

    async def _accept(self, stream: INetStream) -> None:
        """Serve a stream that the other side has opened."""
        lane = cast("YamuxStream", cast("Any", stream).muxed_stream)
        muxed = cast("Yamux", stream.muxed_conn)
        peer = str(muxed.peer_id)
        if self._admission.objection(peer) is not None:
            await lane.reset()
            return
        try:
            with trio.fail_after(self._options.timeout_s):
                greeting = await Greeting.read(lane)
        except (MessageError, Refused, trio.TooSlowError, MuxedStreamError):
            if not muxed.is_closed:
                self._admission.refuse("greeting", peer)
            await lane.reset()
            return
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            await lane.reset()
            return
        with contextlib.suppress(MuxedStreamError):
            await self._answer(neighbour, muxed, lane, greeting)

    async def _answer(self, neighbour: Neighbour, muxed: Yamux, lane: YamuxStream, greeting: Greeting) -> None:
        conn = self._conn_of(muxed)
        if greeting.lane == BULK:
            link = neighbour.link
            if link is None or link.muxed is not muxed or link.bulk is not None or conn is None:
                if not muxed.was_greeted:  # else another connection has taken this one's place meanwhile
                    self._admission.refuse("no control lane", neighbour.peer)
                await self._turn_away(lane, "no control lane")
                return
            await lane.write(self._greeter.greeting(BULK))
            link.attach_bulk(lane)
            await link.ended.wait()
            return
        taken = neighbour.link is not None and neighbour.link.muxed is muxed
        if greeting.lane != CONTROL or conn is None or taken:
            self._admission.refuse("lane", neighbour.peer)
            await self._turn_away(lane, "lane")
            return
        reason = None if self._greeter.agrees(greeting) else "federation"
        link = self._greeter.link(neighbour.peer, conn, lane, greeting, dialled=False)
        reason = reason or self._adopt(neighbour, link)
        if reason is not None:
            if reason != "duplicate":
                self._admission.refuse(reason, neighbour.peer)
            await self._turn_away(lane, reason)
            await self._close_soon(muxed, conn)
            return
        muxed.was_greeted = True
        await self._serve(neighbour, link, answers=True)

    async def _close_soon(self, muxed: Yamux, conn: INetConn) -> None:
        """Close a connection that is not used, once the other side has had time to read why."""
        with trio.move_on_after(RETIRE_S):
            await muxed.ended.wait()
        await conn.close()

    async def _turn_away(self, lane: YamuxStream, reason: str) -> None:
        await lane.write(refusal(reason))
        await lane.close()

    def _conn_of(self, muxed: Yamux) -> INetConn | None:
        return next((c for c in self._swarm.connections.get(muxed.peer_id, []) if c.muxed_conn is muxed), None)

    # ------------------------------------------------------------------------------------------ dialling

    async def _keep(self, neighbour: Neighbour) -> None:
        """Have a link to one neighbour, as well as can be, for as long as it is one."""
        failures = 0
        if not neighbour.dials_first:
            await self._pause(neighbour, PATIENCE_S)
        while self._is_current(neighbour):
            if neighbour.link is not None:
                opened_at = neighbour.link.opened_at
                await neighbour.link.ended.wait()
                failures = 0 if trio.current_time() - opened_at >= STEADY_S else failures + 1
                await self._pause(neighbour, self._back_off_s(max(1, failures)))
                continue
            if await self._try_addresses(neighbour):
                continue
            failures += 1
            await self._pause(neighbour, self._back_off_s(failures))

    def _is_current(self, neighbour: Neighbour) -> bool:
        return self._neighbours.get(neighbour.peer) is neighbour

    async def _pause(self, neighbour: Neighbour, duration_s: float) -> None:
        with trio.move_on_after(duration_s if self._is_current(neighbour) else 0):
            await neighbour.changed.wait()

    def _back_off_s(self, failures: int) -> float:
        return back_off_s(failures, self._options.backoff_s, self._random)

    async def _try_addresses(self, neighbour: Neighbour) -> bool:
        """Dial one address after the other; tell whether there was a link (that may have ended since)."""
        for address in self.directory.addresses(neighbour.peer):
            problem = await self._try(neighbour, address)
            if problem is None or neighbour.link is not None:
                return True
            if not self._is_current(neighbour):
                break
            neighbour.desk.on_link("unreachable", f"{address}: {problem}")
        return False

    async def _try(self, neighbour: Neighbour, address: Address) -> str | None:
        """Dial, and have the link served; return what was wrong where there is none."""
        conn: INetConn | None = None
        try:
            with trio.fail_after(self._options.timeout_s):
                conn = await self._swarm.dial_addr(Multiaddr(str(address)), ID.from_base58(neighbour.peer))
                link = await self._greeter.greet(self._host, conn, neighbour.peer)
        except trio.TooSlowError:
            problem = f"no answer within {self._options.timeout_s:g} s"
        except Refused as error:
            problem = f"refuses this node: {error.reason}"
            if error.reason != "duplicate":
                self._tell(Told("refused by peer", neighbour.peer, f"{address} {problem}"))
        except MultiselectClientError as error:
            problem = "the connection was closed"
            if "not supported" in str(error):
                problem = "speaks no protocol of this version"
                self._admission.refuse("protocol", neighbour.peer)
        except Exception as error:  # noqa: BLE001 - the library and what it stands on raise their own; a dial may fail
            problem = self._dial_problem(neighbour, address, error)
        else:
            if not self._is_current(neighbour):
                problem = "no neighbour any more"
            elif self._adopt(neighbour, link) is None:
                self._nursery.start_soon(self._serve, neighbour, link)
                return None
            else:
                self._nursery.start_soon(link.run_out, neighbour.desk, self._options.ping_s, self._options.dead_s)
                return "another connection was made at the same time"
        if conn is not None:
            with trio.CancelScope(shield=True):
                await conn.close()
        return problem

    def _dial_problem(self, neighbour: Neighbour, address: Address, error: BaseException) -> str:
        causes = causes_of(error)
        if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in causes):
            self._admission.refuse("other site", neighbour.peer, f"another site answers at {address}")
            return "another site answers there"
        return in_words(causes[-1])

    # ------------------------------------------------------------------------------------------ links

    def _adopt(self, neighbour: Neighbour, link: Link) -> str | None:
        """Make this the neighbour's link, in place of what was there; return why not, where it should not be."""
        objection = neighbour.objection(link)
        if objection is None:
            old = neighbour.adopt(link)
            if old is not None:
                self._nursery.start_soon(old.give_way)
        return objection

    async def _serve(self, neighbour: Neighbour, link: Link, *, answers: bool = False) -> None:
        """Run an adopted link to its end; where this side ``answers``, its greeting comes first."""
        try:
            if answers:
                await link.control.write(self._greeter.greeting(CONTROL))
            neighbour.desk.on_link("up", link.address)
            self.directory.tell_all(link)
            neighbour.wake()
            await link.run(neighbour.desk, self._options.ping_s, self._options.dead_s)
        finally:
            link.ended.set()
            if neighbour.link is link:
                neighbour.link = None
                neighbour.drop_all("link down")
                neighbour.desk.on_link("down", link.muxed.detail)
            with trio.CancelScope(shield=True):
                await link.conn.close()

    def take_record(self, source: PeerId, envelope: bytes) -> None:
        """Take an address record that a neighbour has told."""
        self.directory.take(source, envelope, self._nursery)
