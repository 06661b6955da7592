"""Graphs to gossip on: families, sequences, files, mixing weights, analysis, drawing."""

from gossipfl.topology.families import TOPOLOGIES, make_topology
from gossipfl.topology.graph import Topology
from gossipfl.topology.schedule import MixingSequence, RoundLinks
from gossipfl.topology.sequences import SEQUENCES, is_sequence, make_sequence
from gossipfl.topology.spatial import from_sites

__all__ = [
    "SEQUENCES",
    "TOPOLOGIES",
    "MixingSequence",
    "RoundLinks",
    "Topology",
    "from_sites",
    "is_sequence",
    "make_sequence",
    "make_topology",
]
