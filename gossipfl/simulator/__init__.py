"""The dense simulator: a whole network as matrices, and the oracle for the distributed agents."""

from gossipfl.simulator.byzantine import Byzantine
from gossipfl.simulator.rounds import Filtered, RoundReport, Simulator

__all__ = ["Byzantine", "Filtered", "RoundReport", "Simulator"]
