"""Graphs to gossip on: families, sequences, files, mixing weights, analysis, drawing."""

from gossipfl.topology.families.registry import TOPOLOGIES, make_topology
from gossipfl.topology.families.spatial import from_sites
from gossipfl.topology.graph import Topology
from gossipfl.topology.sequences.registry import SEQUENCES, is_sequence, make_sequence
from gossipfl.topology.sequences.schedule import MixingSequence, RoundLinks

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
