"""What lies between the node processes of a run: a broker, or a port of each node's own.

with open_wire(plan) as wire:
    wire.check()
    ...
    wire.share()
    ...                                         # fork the nodes: each takes wire.transport(node)
    await wire.keep(supervisor.tell)
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from gossipfl.testbed.plan import FEDERATION
from gossipfl.testbed.ports import LOOPBACK, ReservedPorts, reserve_ports

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gossipfl.identity import PeerId
    from gossipfl.testbed.broker import RunBroker
    from gossipfl.testbed.plan import Plan
    from gossipfl.transports.base import Transport

    Tell = Callable[..., None]
    """Takes an event's name, and its fields by name."""


class Wire(Protocol):
    """One run's way from node to node, kept by the process that forks the nodes."""

    def check(self) -> None:
        """Find at once, before anything is loaded, what would keep every node from the others.

        Raises TransportUnavailable or ConfigError.
        """

    def share(self) -> None:
        """Load what every node needs, once: forks share it."""

    def transport(self, node: int) -> Transport:
        """Return a node's transport, not started; called in the node's own process."""

    async def keep(self, tell: Tell) -> None:
        """Mend what can be mended while the nodes run, and ``tell`` what happened."""


def open_wire(plan: Plan) -> AbstractContextManager[Wire]:
    """Provide the wire that the spec names for as long as the context lasts; raises TransportUnavailable."""
    return _WIRES[plan.spec.transport](plan)


class MqttWire:
    """A broker that all nodes connect to."""

    def __init__(self, plan: Plan, broker: RunBroker) -> None:
        self._plan = plan
        self._broker = broker

    def check(self) -> None:
        """Log in to somebody else's broker; the testbed's own is there."""
        if self._plan.spec.broker.host is not None:
            asyncio.run(check_connection(self.transport(0)))

    def share(self) -> None:
        """Load the transport."""
        importlib.import_module("gossipfl.transports.mqtt")

    def transport(self, node: int) -> Transport:
        """Return a node's connection to the broker."""
        from gossipfl.transports.mqtt import MqttTransport

        return MqttTransport(self._plan.identities[node].peer_id, self._plan.peers(node), self._broker.options)

    async def keep(self, tell: Tell) -> None:
        """Start the testbed's own broker again whenever it dies."""
        await self._broker.keep(lambda status: tell("broker_restarted", exit_status=status))


class Libp2pWire:
    """A port for each node, which its neighbours know and dial: nothing else runs, and nothing can be down."""

    def __init__(self, plan: Plan, ports: ReservedPorts) -> None:
        self._plan = plan
        self._ports = ports

    def check(self) -> None:
        """See whether the library is here: it is an extra."""
        from gossipfl.transports.libp2p.library import check_library

        check_library()

    def share(self) -> None:
        """Load the transport and the library: more than a second, and 40 MB."""
        importlib.import_module("gossipfl.transports.libp2p.transport")

    def transport(self, node: int) -> Transport:
        """Return a node's links to its neighbours, and leave the ports to the process that reserved them."""
        from gossipfl.transports.libp2p.options import Libp2pOptions
        from gossipfl.transports.libp2p.transport import Libp2pTransport

        self._ports.close()
        plan = self._plan
        options = Libp2pOptions(
            federation=FEDERATION,
            listen=(self._address(node),),
            addresses=self._addresses(node),
            sequence=1,  # a node starts once
            **plan.spec.libp2p.model_dump(),
        )
        # Known members' address records are passed on; those of anybody else would be counted as dropped.
        members = [identity.peer_id for identity in plan.identities]
        return Libp2pTransport(plan.identities[node], plan.peers(node), options, members=members)

    def _addresses(self, node: int) -> dict[PeerId, tuple[str, ...]]:
        neighbours = self._plan.topology.neighbours(node)
        return {self._plan.identities[other].peer_id: (self._address(other),) for other in neighbours}

    def _address(self, node: int) -> str:
        return f"/ip4/{LOOPBACK}/tcp/{self._ports.numbers[node]}"

    async def keep(self, tell: Tell) -> None:
        """Return at once: links are for the nodes themselves to mend."""


@contextlib.contextmanager
def _mqtt_wire(plan: Plan) -> Iterator[MqttWire]:
    from gossipfl.testbed.broker import run_broker

    with run_broker(plan.spec.broker, FEDERATION) as broker:
        yield MqttWire(plan, broker)


@contextlib.contextmanager
def _libp2p_wire(plan: Plan) -> Iterator[Libp2pWire]:
    with reserve_ports(plan.spec.nodes) as ports:
        yield Libp2pWire(plan, ports)


_WIRES: dict[str, Callable[[Plan], AbstractContextManager[Wire]]] = {"mqtt": _mqtt_wire, "libp2p": _libp2p_wire}


async def check_connection(transport: Transport) -> None:
    """Start a transport once, so that what cannot be reached is told once and at once; raises TransportUnavailable."""
    try:
        await transport.start()
    finally:
        await transport.close()
