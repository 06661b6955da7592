"""How the nodes of a testbed reach their MQTT broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossipfl.transports.mqtt import MqttTransport

if TYPE_CHECKING:
    from gossipfl.testbed.plan import Plan
    from gossipfl.transports.mqtt_options import MqttOptions


def mqtt_transport(plan: Plan, options: MqttOptions, node: int) -> MqttTransport:
    """Return a node's transport, not started."""
    return MqttTransport(plan.identities[node].peer_id, plan.peers(node), options)


async def check_connection(transport: MqttTransport) -> None:
    """Log in once, so that a broker that cannot be used is told once and at once; raises TransportUnavailable."""
    try:
        await transport.start()
    finally:
        await transport.close()
