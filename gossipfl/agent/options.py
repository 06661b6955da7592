"""How an agent works, and what makes one lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gossipfl.robust.base import Attack


@dataclass(frozen=True, slots=True)
class CatchUp:
    """A node that is ``rounds`` behind most neighbours at its start takes over a model of theirs.

    It waits for their replicas for at most ``wait_s``, and passes over a model whose loss on its own data is more than
    ``slack`` times that of its own.
    """

    rounds: int = 20
    wait_s: float = 60.0
    slack: float = 1.0


@dataclass(frozen=True, slots=True)
class Guard:
    """A mixing step is rolled back where loss(mixed) > (1 + worse) loss(own), on a probe of the node's own data.

    With 0.5, a loss of 0.3 may become 0.45, and no more.
    """

    worse: float = 0.5


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How one agent works: ``rounds`` None is for ever; ``evaluates(round)`` says when to measure the model.

    At the end an agent serves its neighbours until they hold its last update (with ``leave_together``, until they
    have ended their rounds too), for ``drain_s`` after the last sign of progress at most. A round
    begins no sooner than ``round_every_s`` after the one before: it keeps a node that never ends from taking its
    whole machine. ``catch_up``: what it does where it comes late (None: nothing). ``guard``: which mixing steps it
    refuses (None: none); its learner has to be a ``Judge``.
    """

    local_steps: int
    rounds: int | None
    evaluates: Callable[[int], bool]
    mode: str = "sync"
    join_timeout_s: float = 30.0
    drain_s: float = 10.0
    leave_together: bool = False
    personalise_steps: int = 0
    round_every_s: float = 0.0
    catch_up: CatchUp | None = None
    guard: Guard | None = None


@dataclass(slots=True)
class Liar:
    """What makes an agent Byzantine: it speaks the protocol correctly and lies in its numbers."""

    attack: Attack
    generator: torch.Generator
