"""MQTT: peers that change while the site runs, and what a broker does about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from mosquitto import free_port

from gossipfl.errors import ConfigError, TransportClosed
from gossipfl.transports import mqtt_packets
from gossipfl.transports.base import FORMER_PEER, MAX_FRAME_BYTES
from gossipfl.transports.broker import Broker, start_broker_process
from gossipfl.transports.broker_client import BrokerClient
from gossipfl.transports.mqtt import MqttTransport
from gossipfl.transports.mqtt_options import MqttOptions
from gossipfl.transports.mqtt_session import MqttSession

DEADLINE_S = 20.0
EVERYONE = ("ann", "bob", "cid")


def run(program: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await program
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  # counters have no event to wait for
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def started(*made: MqttTransport) -> AsyncIterator[tuple[MqttTransport, ...]]:
    try:
        for transport in made:
            await transport.start()
        yield made
    finally:
        for transport in made:
            await transport.close()


class Refusals:
    """Makes the brokers of this process refuse, or leave unanswered, what is subscribed to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: set[str] = set()
        self.is_mute = False
        self.asked: list[list[str]] = []
        self.when_asked: Callable[[], object] = lambda: None
        granting = Broker._subscribe

        def subscribe(broker: Broker, client: BrokerClient, request: mqtt_packets.Subscribe) -> None:
            topics = [topic for topic, _ in request.filters]
            self.asked.append(topics)
            self.when_asked()
            if self.is_mute:
                return
            if self.refused.isdisjoint(topics):
                granting(broker, client, request)
                return
            for topic, qos in request.filters:
                if topic not in self.refused:
                    broker._subscriptions.add(client, topic, qos)
            codes = [0x80 if topic in self.refused else qos for topic, qos in request.filters]
            client.write(mqtt_packets.suback(request.packet_id, codes))

        monkeypatch.setattr(Broker, "_subscribe", subscribe)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    return Refusals(monkeypatch)


def test_a_broker_passes_nothing_of_a_former_peer_on_any_more() -> None:
    async def program() -> None:
        async with Broker() as broker:
            options = MqttOptions(port=broker.port)
            ann, bob = MqttTransport("ann", ["bob"], options), MqttTransport("bob", ["ann", "cid"], options)
            async with started(ann, bob):
                await ann.change_peers([], EVERYONE)
                passed_on = broker.counters.messages_out
                await bob.send(["ann"], b"to ann")
                await bob.send(["ann", "cid"], b"to all")
                await until(lambda: broker.counters.messages_in >= 6)  # two probes of each, and these
                assert broker.counters.messages_out == passed_on
                assert ann.counters.by_reason == {}

    run(program())


def test_a_topic_refused_to_a_running_site_is_told_once_and_costs_nothing_else(refusals: Refusals) -> None:
    async def program() -> None:
        async with Broker() as broker:
            options = MqttOptions(port=broker.port, backoff_s=(0.01, 0.01))
            sites = [MqttTransport(me, {"ann", "cid"} ^ {me}, options) for me in ("ann", "cid")]
            ann, cid = sites
            await ann.change_peers([], EVERYONE)
            async with started(*sites):
                assert (await ann.events()).state == "up"
                refused = "gossipfl/default/cid/to/ann"
                refusals.refused = {refused}
                await ann.change_peers(["cid"], EVERYONE)
                assert ann.peers == {"cid"}
                event = await ann.events()
                assert (event.state, event.peer) == ("refused", "cid")
                assert f"refuses ann the topic {refused}; allow it" in event.detail
                await cid.change_peers(["ann", "bob"], EVERYONE)
                await cid.send(["ann", "bob"], b"on the other topic")
                assert (await ann.receive()).frame == b"on the other topic"
                asked = len(refusals.asked)
                await until(lambda: len(refusals.asked) >= asked + 3)
                assert refusals.asked[-1] == [refused]
                assert ann.counters.by_reason == {"refused topic": 1}

                refusals.refused = set()
                asked = len(refusals.asked)
                await until(lambda: len(refusals.asked) > asked)
                await cid.send(["ann"], b"now that it may be read")
                assert (await ann.receive()).frame == b"now that it may be read"
                assert ann.counters.reconnects == 0

    run(program())


def test_a_topic_refused_when_the_link_returns_is_told_and_costs_nothing_else(refusals: Refusals) -> None:
    async def program() -> None:
        port = free_port()
        options = MqttOptions(port=port, backoff_s=(0.01, 0.02))
        ann, bob = MqttTransport("ann", ["bob", "cid"], options), MqttTransport("bob", ["ann"], options)
        async with contextlib.AsyncExitStack() as stack:
            async with Broker(port=port):
                await stack.enter_async_context(started(ann, bob))
                assert [(await site.events()).state for site in (ann, bob)] == ["up", "up"]
            assert [(await site.events()).state for site in (ann, bob)] == ["down", "down"]
            refusals.refused = {"gossipfl/default/cid/all"}
            async with Broker(port=port):
                events = [await ann.events(), await ann.events()]
                assert [(event.state, event.peer) for event in events] == [("refused", "cid"), ("up", None)]
                assert (await bob.events()).state == "up"
                await bob.send(["ann"], b"frame")
                assert (await ann.receive()).frame == b"frame"
                for site in (ann, bob):
                    await site.close()

    run(program())


def test_a_broker_that_does_not_answer_a_change_is_connected_to_anew(refusals: Refusals) -> None:
    async def program() -> None:
        async with Broker() as broker:
            options = MqttOptions(port=broker.port, backoff_s=(0.01, 0.02), timeout_s=0.2)
            async with started(MqttTransport("ann", [], options), MqttTransport("cid", ["ann"], options)) as (ann, cid):
                assert (await ann.events()).state == "up"
                refusals.is_mute = True
                await ann.change_peers(["cid"], EVERYONE)
                assert (await ann.events()).state == "down"
                refusals.is_mute = False
                assert (await ann.events()).state == "up"
                await cid.send(["ann"], b"frame")
                assert (await ann.receive()).frame == b"frame"

    run(program())


def test_peers_that_change_while_a_link_is_set_up_are_subscribed_to_before_it_is_up(
    refusals: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard_when_up: dict[str, set[str]] = {}
    link_is_up = MqttTransport._link_is_up

    def spy(transport: MqttTransport, session: MqttSession, started: asyncio.Future[None]) -> None:
        heard_when_up[transport.me] = set(session._subscribed)
        link_is_up(transport, session, started)

    monkeypatch.setattr(MqttTransport, "_link_is_up", spy)

    async def program() -> None:
        async with Broker() as broker, contextlib.AsyncExitStack() as stack:
            options = MqttOptions(port=broker.port)
            ann = MqttTransport("ann", ["bob"], options)
            changes: list[asyncio.Task[None]] = []
            async with started(MqttTransport("cid", ["ann"], options)) as (cid,):
                refusals.when_asked = lambda: changes.append(asyncio.create_task(ann.change_peers(["cid"], EVERYONE)))
                await stack.enter_async_context(started(ann))
                assert heard_when_up["ann"] == {
                    "gossipfl/default/cid/all",
                    "gossipfl/default/cid/to/ann",
                    "gossipfl/default/ann/to/ann",
                }
                await cid.send(["ann"], b"frame")
                assert (await ann.receive()).frame == b"frame"
                await asyncio.gather(*changes)

    run(program())


def test_close_ends_a_start_and_a_change_at_any_moment() -> None:
    """Broker and site share a loop here, so that after so many turns of it they are always equally far."""

    async def program() -> None:
        async with Broker() as broker:
            for turns in range(60):
                ann = MqttTransport("ann", ["bob"], MqttOptions(port=broker.port))
                starting = asyncio.create_task(ann.start())
                await until(lambda: broker.clients or starting.done())  # noqa: B023 - awaited before the next
                changing = None
                for turn in range(turns):
                    await asyncio.sleep(0)
                    if turn == turns // 2:
                        changing = asyncio.create_task(ann.change_peers(["cid"], EVERYONE))
                await ann.close()
                ended = await asyncio.gather(starting, *[changing] * (changing is not None), return_exceptions=True)
                assert all(end is None or isinstance(end, TransportClosed) for end in ended)
                await until(lambda: not broker.clients)

    run(program())


@pytest.mark.processes
def test_a_frame_that_waits_for_its_turn_does_not_go_to_a_former_peer() -> None:
    async def program() -> None:
        with start_broker_process() as broker:
            options = MqttOptions(port=broker.port, qos=1, timeout_s=10.0)
            async with started(MqttTransport("ann", ["bob", "cid"], options)) as (ann,):
                os.kill(broker.pid, signal.SIGSTOP)
                try:
                    under_way = [asyncio.create_task(ann.send(["cid"], bytes(MAX_FRAME_BYTES))) for _ in range(4)]
                    waiting = [asyncio.create_task(ann.send(to, b"waits")) for to in (["bob"], ["bob", "cid"])]
                    await asyncio.sleep(0)
                    change = asyncio.create_task(ann.change_peers(["cid"], EVERYONE))
                    await asyncio.sleep(0)
                    assert ann.peers == {"cid"}
                    assert not any(task.done() for task in (*under_way, *waiting, change))
                finally:
                    os.kill(broker.pid, signal.SIGCONT)
                assert await asyncio.gather(*under_way, *waiting, change) == [True] * 4 + [False, True, None]
                assert ann.counters.by_reason == {FORMER_PEER: 2}
                assert ann.counters.frames_sent == 5

    run(program())


@pytest.mark.parametrize("peer", ["a+b", ""])
def test_an_id_that_is_no_topic_level_changes_nothing(peer: str) -> None:
    async def program() -> None:
        async with Broker() as broker:
            options = MqttOptions(port=broker.port)
            async with started(MqttTransport("ann", ["bob"], options), MqttTransport("bob", ["ann"], options)) as (
                ann,
                bob,
            ):
                with pytest.raises(ConfigError, match="peer id"):
                    await ann.change_peers(["cid", peer], EVERYONE)
                assert ann.peers == {"bob"}
                await bob.send(["ann"], b"frame")
                assert (await ann.receive()).frame == b"frame"

    run(program())
