"""Frames through an MQTT 3.1.1 broker, with aiomqtt."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from random import Random

from gossipfl.digest import derive_seed
from gossipfl.errors import TransportClosed, TransportUnavailable
from gossipfl.transports.back_off import back_off_s
from gossipfl.transports.base import (
    FORMER_PEER,
    MAX_FRAME_BYTES,
    LinkEvent,
    PeerId,
    Received,
    Transport,
    TransportCounters,
    check_frame,
)
from gossipfl.transports.mailbox import Mailbox
from gossipfl.transports.mqtt_options import MqttOptions, NoUseRetrying, Topics
from gossipfl.transports.mqtt_session import MqttSession

_EVENTS = 64


class MqttTransport(Transport):
    """One site at a broker; see ``Topics`` for what it publishes where, and ``MqttOptions`` for what to set.

    A frame for all peers is published once; one for some of them, once for each. Every frame that arrives while
    ``inbox_frames`` or ``inbox_bytes`` wait is dropped and counted as ``inbox full``; one on another's topic as
    ``foreign``, and one over the limit as ``oversize``. The jitter of the back-off is drawn from a generator
    seeded by the site's id, so that no two sites return to a broker in step.

    A topic that the broker refuses ends ``start``. One that it refuses later, after ``change_peers`` or when the link
    returns, costs the frames on that topic and nothing else: a ``refused`` event tells of it in the words of ``start``,
    it is counted as ``refused topic``, and asked for again and again. What is published for all peers at once a former
    one hears until it has unsubscribed itself.
    """

    def __init__(self, me: PeerId, peers: Collection[PeerId], options: MqttOptions) -> None:
        self.me = me
        self.peers = frozenset(peers)
        self.counters = TransportCounters()
        self._options = options
        self._topics = Topics(options.federation, me, peers)
        self._random = Random(derive_seed(0, "mqtt back-off", me))
        self._inbox: Mailbox[Received] = Mailbox(options.inbox_frames, options.inbox_bytes)
        self._events: Mailbox[LinkEvent] = Mailbox(_EVENTS)
        self._session: MqttSession | None = None
        self._started: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Connect, subscribe and check the permissions; raises TransportUnavailable that says what is wrong."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        self._started = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep_connected(self._started), name=f"mqtt[{self.me}].keep_connected")
        await asyncio.shield(self._started)

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Publish ``frame`` and return when the socket has taken it, or with QoS 1, when the broker has."""
        check_frame(frame, recipients, self.peers)
        if self._closed:
            raise TransportClosed("the transport was closed")
        if self._session is None or not recipients:
            return not recipients
        payload = bytes(frame)
        sent = await self._session.send(self._topics_for(set(recipients)), payload)
        if self._closed:
            raise TransportClosed("the transport was closed")
        self.counters.count_sent(len(payload), frames=sent)
        return sent > 0

    def _topics_for(self, recipients: set[PeerId]) -> Iterator[str]:
        """Yield where to publish, each when its turn comes: until then a recipient may cease to be a peer."""
        if len(recipients) > 1 and recipients == self.peers:
            yield self._topics.broadcast
            return
        for peer in sorted(recipients):
            if peer in self.peers:
                yield self._topics.to[peer]
            else:
                self.counters.count_drop(FORMER_PEER)

    async def receive(self) -> Received:
        """Return the next frame."""
        while True:
            received = await self._inbox.get()
            if received.source in self.peers:
                self.counters.count_received(len(received.frame))
                return received
            self.counters.count_drop("foreign")

    async def events(self) -> LinkEvent:
        """Return the next event of the link to the broker; the oldest are dropped when nobody asks."""
        return await self._events.get()

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Subscribe to the topics of new peers, unsubscribe from those of former ones; wait for the broker.

        A broker that does not answer in time is connected to anew. Who the members are its ACL has to know.
        """
        if self._closed:
            raise TransportClosed("the transport was closed")
        self._topics.change_peers(peers)
        self.peers = frozenset(peers)
        if self._session is not None:
            await self._session.catch_up()
        if self._closed:
            raise TransportClosed("the transport was closed")

    async def close(self) -> None:
        """Let the broker read what was sent, disconnect and end all tasks."""
        session, self._session = self._session, None
        self._closed = True
        try:
            if session is not None:
                await session.settle()
        finally:
            await self._end()

    async def _end(self) -> None:
        self._inbox.close()
        self._events.close()
        if self._started is not None and not self._started.done():
            self._started.set_exception(TransportClosed("the transport was closed"))
            self._started.exception()  # nobody may be waiting in start() any more
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    def _note_refused(self, peer: PeerId, line: str) -> None:
        self.counters.count_refusal("refused topic")
        self._events.push(LinkEvent("refused", peer, line))

    def _take(self, sender: PeerId | None, frame: bytes | bytearray) -> None:
        if not frame:  # a peer's probe of its own broadcast topic
            return
        if sender is None:
            self.counters.count_drop("foreign")
        elif len(frame) > MAX_FRAME_BYTES:
            self.counters.count_drop("oversize")
        elif not self._inbox.offer(Received(sender, frame), len(frame)):
            self.counters.count_drop("inbox full")

    async def _keep_connected(self, started: asyncio.Future[None]) -> None:
        """Connect again whenever the link breaks; before the first success, give up after ``start_tries``."""
        failures = 0
        while True:
            try:
                await self._connected_once(started)
            except TransportUnavailable as error:
                if self._session is not None:
                    self._session = None
                    self._events.push(LinkEvent("down", None, str(error)))
                    failures = 0
                failures += 1
                hopeless = isinstance(error, NoUseRetrying) or failures >= self._options.start_tries
                if hopeless and not started.done():
                    started.set_exception(error)
                    return
            await asyncio.sleep(back_off_s(failures, self._options.backoff_s, self._random))

    async def _connected_once(self, started: asyncio.Future[None]) -> None:
        """Hold one connection until it breaks, which TransportUnavailable tells."""
        session = MqttSession(self.me, self._options, self._topics, self._take, self._note_refused)
        await session.open()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(session.watch(), name=f"mqtt[{self.me}].watch")
                await session.set_up(first=not started.done())
                if self._closed:  # Python 3.11 swallows a cancellation that comes together with the broker's answer
                    raise asyncio.CancelledError
                self._link_is_up(session, started)
                group.create_task(session.follow(), name=f"mqtt[{self.me}].follow")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await session.close()

    def _link_is_up(self, session: MqttSession, started: asyncio.Future[None]) -> None:
        self._session = session
        self._events.push(LinkEvent("up", None, self._options.address))
        if started.done():
            self.counters.reconnects += 1
        else:
            started.set_result(None)
