"""Graphs to gossip on: families, files, mixing weights, analysis, drawing."""

from gossipfl.topology.families import TOPOLOGIES, make_topology
from gossipfl.topology.graph import Topology

__all__ = ["TOPOLOGIES", "Topology", "make_topology"]
