"""One MQTT connection, from its opening to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import aiomqtt
from paho.mqtt.client import Client, MQTTMessage

from gossipfl.errors import TransportUnavailable
from gossipfl.transports.base import PeerId
from gossipfl.transports.mqtt_options import MqttOptions, NoUseRetrying, Topics

Deliver = Callable[[PeerId | None, bytes | bytearray], None]
"""Takes a frame and its sender, or None when the topic is nobody's."""

Refused = Callable[[PeerId, str], None]
"""Takes a peer whose topic the broker refuses, and the line that says so."""

_SOCKET_BUFFER_BYTES = 1 << 20  # a whole frame goes to the kernel in one piece
_CONCURRENT_PUBLISHES = 4
_ABANDON_S = 1.0
_SETTLE_S = 2.0
_REFUSED = 0x80
_LOGIN_REFUSALS = frozenset({132, 133, 134, 135})  # aiomqtt gives CONNACK codes 1, 2, 4 and 5 these MQTT 5 numbers

_LOGGER = logging.getLogger("gossipfl.transports.aiomqtt")
_LOGGER.setLevel(logging.ERROR)  # what aiomqtt warns of is told by exceptions and link events


class MqttSession:
    """One connection to the broker: ``open`` it, ``send`` while ``watch`` and ``follow`` run, ``close`` it in any case.

    A frame goes from the socket to ``deliver`` within one callback of the event loop; nothing is queued between.
    ``topics`` may change at any time; ``catch_up`` says that they have.
    """

    def __init__(self, me: PeerId, options: MqttOptions, topics: Topics, deliver: Deliver, on_refused: Refused) -> None:
        self._me = me
        self._options = options
        self._topics = topics
        self._deliver = deliver
        self._on_refused = on_refused
        self._subscribed: set[str] = set()
        self._refused: set[str] = set()
        self._topics_changed = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._probes: dict[str, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT_PUBLISHES)
        self._sending: set[asyncio.Timeout] = set()
        self._broken = False
        self._client = self._new_client()
        self._paho.on_message = self._arrived

    def _new_client(self) -> aiomqtt.Client:
        options = self._options
        tcp = options.socket_path is None
        socket_options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)]
        if tcp:
            socket_options.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
        return aiomqtt.Client(
            options.socket_path or options.host,
            options.port,
            transport="tcp" if tcp else "unix",
            username=options.username,
            password=options.password,
            identifier=f"gossipfl-{options.federation}-{self._me}",
            clean_session=True,
            keepalive=options.keepalive_s,
            timeout=options.timeout_s,
            tls_context=options.tls.context() if options.tls else None,
            socket_options=socket_options,
            logger=_LOGGER,
        )

    async def open(self) -> None:
        """Connect; raises NoUseRetrying when trying again is no use, and TransportUnavailable otherwise.

        aiomqtt connects in a thread that cannot be stopped: a cancelled ``open`` waits until it is done.
        """
        if self._options.socket_path is not None:
            _try_unix_socket(self._options)
        opening = asyncio.create_task(self._client.__aenter__(), name=f"mqtt[{self._me}].open")
        try:
            await asyncio.shield(opening)
        except aiomqtt.MqttError as error:
            await self._free_socket()
            raise _unavailable(error, self._options) from None
        except asyncio.CancelledError:
            with contextlib.suppress(aiomqtt.MqttError):
                await opening
            await self.close()
            raise
        self._write_at_once()

    def _write_at_once(self) -> None:
        """Have packets written when they are made, and the event loop asked only when the socket is full.

        paho asks its event loop through a callback whenever it has something to write, even on an idle socket;
        aiomqtt answers with three turns of the loop for each packet. Connecting is done by then, so the callback
        comes from this thread only.
        """
        paho, ask_loop = self._paho, self._paho.on_socket_register_write

        def write(_: Client, userdata: Any, sock: Any) -> None:
            paho.loop_write()
            if ask_loop is not None and paho.want_write() and paho.socket() is not None:
                ask_loop(paho, userdata, sock)

        paho.on_socket_register_write = write

    @property
    def _paho(self) -> Client:
        """The client below aiomqtt, by the only private name used here; version 2 shows it in no other way."""
        return self._client._client

    async def watch(self) -> None:
        """Return, never: raises TransportUnavailable when the connection breaks."""
        try:
            async for _ in self._client.messages:  # none comes this way, see _arrived
                pass
        except aiomqtt.MqttError as error:
            raise TransportUnavailable(f"connection lost: {error.__cause__ or error}") from None
        finally:
            self._broken = True
            self._topics_changed.set()
            self._caught_up.set()
            loop = asyncio.get_running_loop()
            for sending in self._sending:
                sending.reschedule(loop.time())

    async def set_up(self, *, first: bool) -> None:
        """Subscribe, and make sure that the broker passes on what this site publishes.

        An MQTT broker refuses in silence what its ACL does not allow, so the site sends itself a message on each
        kind of topic. Raises TransportUnavailable that names the topic. Where this is not the ``first`` connection, a
        peer's topic that the broker refuses is told to ``on_refused``, and the others are used.
        """
        probes = self._topics.probes()
        try:
            await self._subscribe([*self._topics.sender_of, *probes], essential=None if first else probes)
            for topic in probes:
                await self._probe(topic, self._options.timeout_s)
            while self._subscribed | self._refused != set(self._topics.heard()):
                await self._adjust(essential=None if first else probes)
        except aiomqtt.MqttError as error:
            raise _unavailable(error, self._options) from None

    async def follow(self) -> None:
        """Keep the subscriptions what the topics say; raises TransportUnavailable when the link fails.

        A topic that the broker refuses is asked for again after the longest wait of the back-off.
        """
        try:
            while not self._broken:  # a cancellation does not suffice, see ``MqttTransport._connected_once``
                self._topics_changed.clear()
                await self._adjust(essential=())
                if not self._topics_changed.is_set():
                    self._caught_up.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._options.backoff_s[1] if self._refused else None):
                        await self._topics_changed.wait()
        except aiomqtt.MqttError as error:
            raise _unavailable(error, self._options) from None

    async def catch_up(self) -> None:
        """Return when the broker has answered what the topics' latest change asks of it, or the link has ended."""
        self._topics_changed.set()
        if not self._broken:
            self._caught_up.clear()
            await self._caught_up.wait()

    async def _adjust(self, essential: Collection[str] | None) -> None:
        heard = self._topics.heard()
        gone = sorted(self._subscribed.difference(heard))
        if gone:
            await self._client.unsubscribe(gone)
            self._subscribed.difference_update(gone)
        await self._subscribe([topic for topic in heard if topic not in self._subscribed], essential)

    async def _subscribe(self, topics: Sequence[str], essential: Collection[str] | None) -> None:
        """Subscribe; raises NoUseRetrying for a refused topic that is ``essential`` (None: all are)."""
        wanted: list[tuple[str, int]] = [(topic, self._options.qos) for topic in topics]
        granted: Sequence[Any] = await self._client.subscribe(wanted) if wanted else ()
        codes = {topic: getattr(code, "value", code) for topic, code in zip(topics, granted, strict=True)}
        before, self._refused = self._refused, {topic for topic, code in codes.items() if code >= _REFUSED}
        self._subscribed |= codes.keys() - self._refused
        for topic in sorted(self._refused - before):
            line = (
                f"the MQTT broker at {self._options.address} refuses {self._me} the topic {topic}; "
                "allow it to read that topic (ACL)"
            )
            if essential is None or topic in essential:
                raise NoUseRetrying(line)
            if topic in self._topics.sender_of:
                self._on_refused(self._topics.sender_of[topic], line)

    async def _probe(self, topic: str, timeout_s: float) -> None:
        heard = self._probes[topic] = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.publish(topic, b"", qos=self._options.qos, timeout=math.inf)
                await heard.wait()
        except TimeoutError:
            raise NoUseRetrying(
                f"the MQTT broker at {self._options.address} does not pass on what {self._me} publishes to {topic}; "
                "allow it to publish to that topic and to read it (ACL)"
            ) from None
        finally:
            del self._probes[topic]

    def _arrived(self, paho: Client, userdata: Any, message: MQTTMessage) -> None:
        """Hand a message on; aiomqtt's queue would cost a task for each, and drops them when it is full."""
        topic = message.topic
        sender = self._topics.sender_of.get(topic)
        if sender is None and topic in self._probes:
            self._probes[topic].set()
        else:
            self._deliver(sender, message.payload)

    async def send(self, topics: Iterable[str], payload: bytes | bytearray) -> int:
        """Publish to each topic and wait until the socket has taken it all (QoS 1: until the broker answers).

        Returns to how many it was published: none when the connection is broken. Each topic is asked for when its turn
        has come.
        """
        sent = 0
        try:
            async with self._slots, asyncio.timeout(None) as sending:
                if self._broken:
                    return 0
                self._sending.add(sending)
                try:
                    for topic in topics:
                        await self._client.publish(topic, payload, qos=self._options.qos, timeout=math.inf)
                        sent += 1
                finally:
                    self._sending.discard(sending)
        except TimeoutError:
            return sent + 1  # the link broke while the frame was under way: nobody knows
        except aiomqtt.MqttError:
            return sent
        return sent

    async def settle(self) -> None:
        """Wait, no longer than ``_SETTLE_S``, until the broker has read all that was sent.

        A message to itself tells: it comes back behind everything before it. A connection that is closed while
        something is on its way to this site is reset, and a broker may then drop what it has not read.
        """
        with contextlib.suppress(TransportUnavailable, aiomqtt.MqttError):
            await self._probe(self._topics.own, _SETTLE_S)

    async def close(self) -> None:
        """Disconnect; waits for the broker no longer than ``timeout_s``."""
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)
        await self._free_socket()

    async def _free_socket(self) -> None:
        """End a connection whose broker no longer answers; aiomqtt itself would leave its socket and task behind."""
        paho = self._paho
        sock = paho.socket()
        if not isinstance(sock, socket.socket):
            return
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # paho's next read sees the end and takes everything down
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ABANDON_S):
                while paho.socket() is not None:  # noqa: ASYNC110  # paho has no event for it
                    await asyncio.sleep(0)


def _try_unix_socket(options: MqttOptions) -> None:
    """Raise TransportUnavailable when nobody listens; paho would leave an open socket behind at every try."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(options.socket_path or "")
        except OSError as error:
            raise _unavailable(aiomqtt.MqttError(str(error)), options) from None


def _unavailable(error: aiomqtt.MqttError, options: MqttOptions) -> TransportUnavailable:
    """Tell in one line what is wrong with the connection and how to mend it."""
    code: Any = getattr(error, "rc", None)
    if isinstance(error, aiomqtt.MqttCodeError) and getattr(code, "value", code) in _LOGIN_REFUSALS:
        return NoUseRetrying(
            f"the MQTT broker at {options.address} refuses user {options.username!r}: {code}; "
            "correct the user name and password"
        )
    text = str(error)
    if "CERTIFICATE" in text or "certificate" in text:
        return NoUseRetrying(
            f"no TLS connection with the MQTT broker at {options.address}: {text}; "
            "correct the CA file, certificate and key, or the host name"
        )
    return TransportUnavailable(
        f"cannot reach the MQTT broker at {options.address}: {text}; start it, or correct its address"
    )
