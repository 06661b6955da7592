"""Putting a saboteur into its place in a run."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from gossipfl.codec import make_codec
from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError
from gossipfl.gossip.replica import KEYFRAME_CODEC
from gossipfl.messages import CHUNK_BYTES, MAX_META_BYTES
from gossipfl.testbed.saboteurs.base import Cover
from gossipfl.testbed.saboteurs.forge import Forge
from gossipfl.testbed.saboteurs.transport import SabotagedTransport

if TYPE_CHECKING:
    from gossipfl.gossip import GossipCore
    from gossipfl.testbed.plan import Plan
    from gossipfl.transports.base import Transport


def sabotaged(plan: Plan, node: int, core: GossipCore, transport: Transport) -> Transport:
    """Return a node's way to the wire: ``transport`` itself, or with a saboteur in between where the node is one."""
    if plan.sabotage is None or node not in plan.byzantine:
        return transport
    forge = Forge(plan.identities[node], core.exchange.post)
    random = Random(derive_seed(plan.spec.seed, "attack", node))
    return SabotagedTransport(transport, plan.sabotage.saboteur(Cover(core, forge, random)))


def check_reach(plan: Plan, parameters: int) -> None:
    """Raise ConfigError where updates of a model of so many parameters travel in chunks, out of a forger's reach."""
    sabotage, codec = plan.sabotage, make_codec(plan.spec.codec.name, plan.spec.codec.options)
    if sabotage is None or not sabotage.forges:
        return
    largest = max(codec.max_bytes(parameters), KEYFRAME_CODEC.max_bytes(parameters)) + MAX_META_BYTES
    if largest > CHUNK_BYTES:
        raise ConfigError(
            f'attack "{sabotage.name}" forges updates that travel with their message, up to {CHUNK_BYTES} bytes, and '
            f"those of {parameters} parameters may have {largest}; choose a smaller model, or another attack"
        )
