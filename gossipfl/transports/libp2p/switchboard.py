"""All links of one node: who dials whom, who is let in, which of two connections stays."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from gossipfl.digest import derive_seed
from gossipfl.errors import MessageError, TransportUnavailable
from gossipfl.identity import Identity, PeerId
from gossipfl.membership import federation_id_of
from gossipfl.transports.libp2p.addresses import Address, listenable
from gossipfl.transports.libp2p.host import TidyTcp, cannot_listen, make_host, swarm_of
from gossipfl.transports.libp2p.interfaces import on_every_interface, someone_listens
from gossipfl.transports.libp2p.link import Desk, Link
from gossipfl.transports.libp2p.noise import NotAdmitted
from gossipfl.transports.libp2p.options import MAX_ADDRESSES, Libp2pOptions
from gossipfl.transports.libp2p.records import MIN_GAP_S, AddressBook, Record, TooSoon
from gossipfl.transports.libp2p.wire import BULK, CONTROL, PROTOCOL, Greeting, Refused, refusal
from gossipfl.transports.libp2p.yamux import Yamux, YamuxStream

PATIENCE_S = 1.0
"""How long the second of two sides lets the first one dial."""
CROSSED_S = 3.0
"""Two connections that are made within this time may have been made by both sides at once."""
RETIRE_S = 0.5
"""How long a link that was replaced still brings what was on its way: closed at once, it would look like a failure."""
STEADY_S = 1.0
"""A link that ends sooner counts as a failed attempt, so that one that always breaks is tried less and less often."""
REMEMBERED_STARTS = 8
MAX_CAUSES = 8
SETTLE_S = 2.0
"""How long a node that closes waits for its neighbours to have read what it said last."""

REASONS: Mapping[str, str] = {
    "stranger": "no member of the federation",
    "no neighbour": "a member, but no neighbour of this node",
    "removed": "no member any more",
    "own key": "it has this node's own key: another node runs with it",
    "twin": "another node runs with the same key",
    "federation": "it belongs to another federation",
    "greeting": "it sent no greeting that can be read",
    "lane": "it opened a stream that this protocol does not have, or has already",
    "no control lane": "it opened the second stream before the first",
    "no lane": "it opened no stream of this protocol; does it speak another major version?",
    "protocol": "it speaks no protocol of this version",
    "other site": "another site answers at its address",
}
"""Why a connection is not used, by the word that is counted, in words for people."""


@dataclass(frozen=True, slots=True)
class Told:
    """Something that the transport on the asyncio side has to know."""

    what: str
    peer: PeerId | None
    detail: str = ""


@dataclass(slots=True)
class Neighbour:
    """What is known of one neighbour: its link, its starts, and why it was not reached."""

    peer: PeerId
    desk: Desk
    link: Link | None = None
    instance: bytes = b""
    former: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STARTS))
    changed: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        """Let its keeper look: there is a link, or a new address."""
        self.changed.set()
        self.changed = trio.Event()


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
        self._members = frozenset(members)
        self._options = options
        self._tell = tell
        self._neighbours = {peer: Neighbour(peer, desk) for peer, desk in desks.items()}
        self._removed: set[PeerId] = set()
        self._book = AddressBook(options.addresses, {self._me, *members, *desks})
        self._federation = federation_id_of(options.federation)
        self._instance = instance
        self._random = Random(derive_seed(0, "libp2p back-off", self._me))
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._tcp = TidyTcp()
        self._own_addresses: list[Address] = []
        self._held_back: dict[PeerId, tuple[PeerId, bytes]] = {}

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
        self._swarm.register_notifee(cast("Any", _Arrivals(self._arrived)))
        async with trio.open_nursery() as self._nursery:
            self._sign_record(listening)
            for neighbour in self._neighbours.values():
                self._nursery.start_soon(self._keep, neighbour)
            task_status.started(tuple(map(str, listening)))
            async with self._local_network(trio.lowlevel.current_trio_token()):
                await self._stop.wait()
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
        reason = self._objection(peer)
        if reason is not None:
            self._refuse(reason, peer)
            raise NotAdmitted(reason)

    def _objection(self, peer: PeerId) -> str | None:
        if peer == self._me:
            return "own key"
        if peer in self._removed:
            return "removed"
        if peer in self._neighbours:
            return None
        return "no neighbour" if peer in self._members else "stranger"

    def _refuse(self, reason: str, peer: PeerId, detail: str = "") -> None:
        self._tell(Told(f"refused {reason}", peer, detail or REASONS.get(reason, reason)))

    async def remove(self, peer: PeerId) -> None:
        """Cut a member off, from now on."""
        self._removed.add(peer)
        self._book.forget(peer)
        for conn in list(self._swarm.connections.get(ID.from_base58(peer), [])):
            await conn.close()

    async def _arrived(self, conn: INetConn) -> None:
        """Give a new connection a bounded time to open a lane."""
        if not self._stop.is_set():
            self._nursery.start_soon(self._expect_lane, conn)

    async def _expect_lane(self, conn: INetConn) -> None:
        muxed = cast("Yamux", conn.muxed_conn)
        if muxed.is_initiator:
            return
        with trio.move_on_after(self._options.timeout_s):
            await muxed.ended.wait()
        if not (muxed.was_greeted or muxed.is_closed):
            self._refuse("no lane", str(muxed.peer_id))
            await conn.close()

    # ------------------------------------------------------------------------------------------ accepting

    async def _accept(self, stream: INetStream) -> None:
        """Serve a stream that the other side has opened."""
        lane = cast("YamuxStream", cast("Any", stream).muxed_stream)
        muxed = cast("Yamux", stream.muxed_conn)
        peer = str(muxed.peer_id)
        neighbour = self._neighbours.get(peer)
        if neighbour is None or self._objection(peer) is not None:
            await lane.reset()
            return
        try:
            with trio.fail_after(self._options.timeout_s):
                greeting = await Greeting.read(lane)
        except (MessageError, Refused, trio.TooSlowError, MuxedStreamError):
            if not muxed.is_closed:
                self._refuse("greeting", peer)
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
                    self._refuse("no control lane", neighbour.peer)
                await self._turn_away(lane, "no control lane")
                return
            await lane.write(self._greeting(BULK))
            link.attach_bulk(lane)
            await link.ended.wait()
            return
        taken = neighbour.link is not None and neighbour.link.muxed is muxed
        if greeting.lane != CONTROL or conn is None or taken:
            self._refuse("lane", neighbour.peer)
            await self._turn_away(lane, "lane")
            return
        reason = "federation" if greeting.federation != self._federation else None
        link = self._link(neighbour, conn, lane, greeting, dialled=False)
        reason = reason or self._adopt(neighbour, link)
        if reason is not None:
            if reason != "duplicate":
                self._refuse(reason, neighbour.peer)
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
        """Have a link to one neighbour, as well as can be."""
        failures = 0
        if self._me > neighbour.peer:
            await self._pause(neighbour, PATIENCE_S)
        while True:
            if neighbour.link is not None:
                opened_at = neighbour.link.opened_at
                await neighbour.link.ended.wait()
                failures = 0 if trio.current_time() - opened_at >= STEADY_S else failures + 1
                await self._pause(neighbour, self._back_off_s(max(1, failures)))
                continue
            if neighbour.peer not in self._removed and await self._try_addresses(neighbour):
                continue
            failures += 1
            await self._pause(neighbour, self._back_off_s(failures))

    async def _pause(self, neighbour: Neighbour, duration_s: float) -> None:
        with trio.move_on_after(duration_s):
            await neighbour.changed.wait()

    def _back_off_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row: doubled each time, bounded, jittered."""
        first_s, longest_s = self._options.backoff_s
        return self._random.uniform(0.5, 1.0) * min(longest_s, first_s * 2.0 ** min(failures - 1, 32))

    async def _try_addresses(self, neighbour: Neighbour) -> bool:
        """Dial one address after the other; tell whether there was a link (that may have ended since)."""
        for address in self._book.addresses(neighbour.peer):
            problem = await self._try(neighbour, address)
            if problem is None or neighbour.link is not None:
                return True
            self._tell(Told("unreachable", neighbour.peer, f"{address}: {problem}"))
        return False

    async def _try(self, neighbour: Neighbour, address: Address) -> str | None:
        """Dial, and serve the link until it ends; return what was wrong where there was none."""
        conn: INetConn | None = None
        try:
            with trio.fail_after(self._options.timeout_s):
                conn = await self._swarm.dial_addr(Multiaddr(str(address)), ID.from_base58(neighbour.peer))
                link = await self._greet(neighbour, conn)
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
                self._refuse("protocol", neighbour.peer)
        except Exception as error:  # noqa: BLE001 - the library and what it stands on raise their own; a dial may fail
            problem = self._dial_problem(neighbour, address, error)
        else:
            if self._adopt(neighbour, link) is None:
                self._nursery.start_soon(self._serve, neighbour, link)
                return None
            self._nursery.start_soon(self._run_out, neighbour, link)
            return "another connection was made at the same time"
        if conn is not None:
            with trio.CancelScope(shield=True):
                await conn.close()
        return problem

    def _dial_problem(self, neighbour: Neighbour, address: Address, error: BaseException) -> str:
        causes: list[BaseException] = [error]
        while (cause := _cause_of(causes[-1])) is not None and len(causes) < MAX_CAUSES:
            causes.append(cause)
        if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in causes):
            self._refuse("other site", neighbour.peer, f"another site answers at {address}")
            return "another site answers there"
        return _in_words(causes[-1])

    async def _greet(self, neighbour: Neighbour, conn: INetConn) -> Link:
        control, answer = await self._open_lane(conn, CONTROL)
        if answer.federation != self._federation:
            self._refuse("federation", neighbour.peer)
            raise Refused("federation")
        link = self._link(neighbour, conn, control, answer, dialled=True)
        with contextlib.suppress(Refused):
            link.bulk, _ = await self._open_lane(conn, BULK)
        return link

    async def _open_lane(self, conn: INetConn, lane: int) -> tuple[YamuxStream, Greeting]:
        stream = await conn.new_stream()
        await self._host_client.select_one_of((TProtocol(PROTOCOL),), MultiselectCommunicator(stream))
        opened = cast("YamuxStream", cast("Any", stream).muxed_stream)
        await opened.write(self._greeting(lane))
        return opened, await Greeting.read(opened)

    @property
    def _host_client(self) -> Any:
        return cast("Any", self._host).multiselect_client

    def _greeting(self, lane: int) -> bytes:
        return Greeting(self._federation, self._instance, lane).pack()

    # ------------------------------------------------------------------------------------------ links

    def _link(
        self, neighbour: Neighbour, conn: INetConn, control: YamuxStream, greeting: Greeting, *, dialled: bool
    ) -> Link:
        muxed = cast("Yamux", conn.muxed_conn)
        return Link(
            peer=neighbour.peer,
            conn=conn,
            muxed=muxed,
            control=control,
            instance=greeting.instance,
            dialled=dialled,
            address="".join(map(str, muxed.get_transport_addresses())),
            opened_at=trio.current_time(),
            window_bytes=self._options.window_bytes,
        )

    def _adopt(self, neighbour: Neighbour, link: Link) -> str | None:
        """Make this the neighbour's link, in place of what was there; return why not, where it should not be."""
        if neighbour.peer in self._removed:
            return "removed"
        old = neighbour.link
        if neighbour.instance not in (b"", link.instance):
            if link.instance in neighbour.former and old is not None and not old.muxed.is_closed:
                return "twin"
            neighbour.former.append(neighbour.instance)
        elif old is not None and self._outranks(old, link):
            return "duplicate"
        neighbour.instance, neighbour.link = link.instance, link
        if old is not None:
            old.retire()
            self._nursery.start_soon(self._close_later, old)
        return None

    async def _close_later(self, link: Link) -> None:
        """Close a link that was replaced once the other side has had time to take up the new one."""
        with trio.move_on_after(RETIRE_S):
            await link.ended.wait()
        await link.close("replaced by a newer connection")

    def _outranks(self, old: Link, new: Link) -> bool:
        """Tell whether ``old`` stays although ``new`` was made: both sides dialled, and it is the smaller one's."""
        crossed = old.dialled != new.dialled and new.opened_at - old.opened_at < CROSSED_S
        made_by_smaller = old.dialled == (self._me < old.peer)
        return crossed and made_by_smaller and not old.muxed.is_closed

    async def _run_out(self, neighbour: Neighbour, link: Link) -> None:
        """Hear out a connection that loses against one made at the same time: the other side may not know that yet."""
        link.retire()
        with trio.move_on_after(RETIRE_S):
            await link.run(neighbour.desk, self._options.ping_s, self._options.dead_s)
        await link.close("another connection was made at the same time")

    async def _serve(self, neighbour: Neighbour, link: Link, *, answers: bool = False) -> None:
        """Run an adopted link to its end; where this side ``answers``, its greeting comes first."""
        try:
            if answers:
                await link.control.write(self._greeting(CONTROL))
            self._tell(Told("up", neighbour.peer, link.address))
            for record in self._book.records():
                link.tell_record(record.peer, record.envelope)
            neighbour.wake()
            await link.run(neighbour.desk, self._options.ping_s, self._options.dead_s)
        finally:
            link.ended.set()
            if neighbour.link is link:
                neighbour.link = None
                lost = neighbour.desk.outbox.drop_all()
                for _ in range(lost):
                    neighbour.desk.on_drop("link down")
                self._tell(Told("down", neighbour.peer, link.muxed.detail))
            with trio.CancelScope(shield=True):
                await link.conn.close()

    # ------------------------------------------------------------------------------------------ addresses

    def _sign_record(self, listening: Iterable[Address]) -> None:
        told = [Address.parse(text) for text in self._options.announce]
        self._own_addresses = (told or on_every_interface(listening))[:MAX_ADDRESSES]
        record = Record.sign(self._identity, self._own_addresses, self._options.sequence)
        self._book.take(record, trio.current_time())

    def take_record(self, source: PeerId, envelope: bytes) -> None:
        """Keep a record that a neighbour has told, and pass it on where it is new."""
        if self._book.knows(envelope):  # it comes from every neighbour, and checking a signature takes its time
            return
        neighbour = self._neighbours.get(source)
        try:
            record = Record.read(envelope)
            if record.peer == self._me or not self._book.take(record, trio.current_time()):
                return
        except TooSoon as error:
            if not self._held_back:
                self._nursery.start_soon(self._take_held_back)
            self._held_back[error.peer] = source, envelope
            if neighbour is not None:
                neighbour.desk.on_drop(str(error))
            return
        except MessageError as error:
            if neighbour is not None:
                neighbour.desk.on_drop(str(error))
            return
        self._tell(Told("record", record.peer, ", ".join(map(str, record.addresses))))
        for other in self._neighbours.values():
            if other.link is not None and other.peer not in (source, record.peer):
                other.link.tell_record(record.peer, envelope)
        moved = self._neighbours.get(record.peer)
        if moved is not None and moved.link is None:
            moved.wake()

    async def _take_held_back(self) -> None:
        """Look again, a little later, at the newest record of whoever signs them too fast."""
        await trio.sleep(MIN_GAP_S)
        held, self._held_back = self._held_back, {}
        for source, envelope in held.values():
            self.take_record(source, envelope)

    def remember(self, envelopes: Iterable[bytes]) -> None:
        """Take records that were kept over a restart; one that cannot be read is left out."""
        for envelope in envelopes:
            with contextlib.suppress(MessageError):
                self._book.take(Record.read(envelope), float("-inf"))

    def records(self) -> tuple[bytes, ...]:
        """Return the newest record of every other member that is known."""
        return tuple(record.envelope for record in self._book.records() if record.peer != self._me)

    def _local_network(self, token: trio.lowlevel.TrioToken) -> contextlib.AbstractAsyncContextManager[None]:
        """Find, and be found by, sites of the local network; nothing where that is not wanted."""
        if not self._options.mdns:
            return contextlib.nullcontext()
        from gossipfl.transports.libp2p.local import on_local_network

        def found(peer: PeerId, told: list[str]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._take_hint, peer, told)

        return on_local_network(self._me, self._own_addresses, found)

    def _take_hint(self, peer: PeerId, told: list[str]) -> None:
        neighbour = self._neighbours.get(peer)
        if neighbour is not None and self._book.hint(peer, told) and neighbour.link is None:
            neighbour.wake()


def _in_words(error: BaseException) -> str:
    """Return an error as a part of a line: what the system says of it, without numbers and addresses."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _cause_of(error: BaseException) -> BaseException | None:
    """Return what is behind an error: its cause, or the first of several that were gathered."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__


class _Arrivals:
    """Hears of connections; py-libp2p asks its listeners for all of these."""

    def __init__(self, arrived: Callable[[INetConn], Any]) -> None:
        self._arrived = arrived

    async def connected(self, network: Any, conn: INetConn) -> None:
        await self._arrived(conn)

    async def disconnected(self, network: Any, conn: INetConn) -> None:
        return

    async def opened_stream(self, network: Any, stream: INetStream) -> None:
        return

    async def closed_stream(self, network: Any, stream: INetStream) -> None:
        return

    async def listen(self, network: Any, multiaddr: Multiaddr) -> None:
        return

    async def listen_close(self, network: Any, multiaddr: Multiaddr) -> None:
        return
