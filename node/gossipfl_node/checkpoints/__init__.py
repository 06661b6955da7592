"""Checkpoints: what a site has learned, on its disk, for its daemon to go on from."""

from gossipfl_node.checkpoints.generation import SCHEMA, Checkpoint
from gossipfl_node.checkpoints.store import CheckpointError, Checkpoints

__all__ = ["SCHEMA", "Checkpoint", "CheckpointError", "Checkpoints"]
