"""The asyncio agent: a thin shell that drives one node's learner, protocol core and transport."""

from gossipfl.agent.options import AgentOptions, CatchUp, Guard, Liar
from gossipfl.agent.reports import AgentResult, Observer, RoundReport
from gossipfl.agent.shell import Agent
from gossipfl.agent.succession import Steward, Succession

__all__ = [
    "Agent",
    "AgentOptions",
    "AgentResult",
    "CatchUp",
    "Guard",
    "Liar",
    "Observer",
    "RoundReport",
    "Steward",
    "Succession",
]
