"""A node that comes late, or back after a long time, starts from the model of a neighbour."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from gossipfl.gossip import GossipCore, Report
from gossipfl.tasks.base import Judge, Learner

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.agent.options import CatchUp
    from gossipfl.compute import Compute


class Latecomer:
    """Finds a model to start from, one neighbour's after the other's.

    ``on_core(work)`` runs work on the core, ``until(condition, limit_s)`` waits for something, at most so long.
    """

    def __init__(
        self,
        core: GossipCore,
        learner: Learner,
        compute: Compute,
        on_core: Callable[[Callable[[], Any]], Awaitable[Any]],
        until: Callable[[Callable[[], bool], float], Awaitable[bool]],
    ) -> None:
        self._core = core
        self._learner = learner
        self._compute = compute
        self._on_core, self._until = on_core, until

    async def catch_up(self, limits: CatchUp) -> list[Report]:
        """Start from a neighbour's model where this node is late; return what happened."""
        core, behind = self._core, self._core.lateness
        if behind < limits.rounds:
            return []
        await self._until(lambda: core.may_choose_donor, limits.wait_s)
        reports = []
        for peer in await self._on_core(core.donors):
            model = await self._on_core(lambda: core.copy_of(peer))  # noqa: B023 - awaited before the next
            if model is None:
                continue
            own, loss = await self._losses(model)
            fields = {"loss": loss, "own_loss": own}
            if own is not None and loss is not None and not loss <= limits.slack * own:
                reports.append(Report("donor_refused", peer, fields))
                continue
            self._learner.vector.copy_(model)
            await self._on_core(lambda: core.start_from(model))  # noqa: B023 - as above
            return [*reports, Report("caught_up", peer, {"rounds": behind, **fields})]
        return [*reports, Report("not_caught_up", None, {"rounds": behind})]

    async def _losses(self, model: Tensor) -> tuple[float | None, float | None]:
        """Return the losses of the own model and of ``model`` on own data, where the learner can tell."""
        learner = self._learner
        if not isinstance(learner, Judge):
            return None, None
        own, loss = (await self._compute.train(lambda: learner.losses([learner.vector, model]))).value
        return own, loss
