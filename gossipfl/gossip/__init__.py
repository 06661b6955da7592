"""The protocol core: a state machine without input, output or clock."""

from gossipfl.gossip.charters import Charters
from gossipfl.gossip.core import GossipCore
from gossipfl.gossip.effects import Adopt, Convict, Effect, Report, Send
from gossipfl.gossip.mixing import Knowledge
from gossipfl.gossip.rounds import CoreState, Mixing, Phase
from gossipfl.gossip.settings import GossipSettings, Party

__all__ = [
    "Adopt",
    "Charters",
    "Convict",
    "CoreState",
    "Effect",
    "GossipCore",
    "GossipSettings",
    "Knowledge",
    "Mixing",
    "Party",
    "Phase",
    "Report",
    "Send",
]
