"""From a running site to its checkpoints, and back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError
from gossipfl.gossip import CoreState
from gossipfl.tasks.base import restore_learner
from gossipfl_node.checkpoints import CheckpointError, Checkpoints
from gossipfl_node.metrics import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gossipfl.gossip import GossipCore
    from gossipfl.tasks.base import Learner
    from gossipfl_node.status import Ledger

FOLDER = "checkpoints"
RETRY_S = 10.0
"""After a failure the next attempt is made so soon, where checkpoints are farther apart."""

log = logging.getLogger(__name__)


class Resumption:
    """The checkpoints of one site: at most one is being written, on a thread of its own.

    ``every_s``: least time from one to the next; ``layout``: digest of the model's layout.
    """

    def __init__(self, state: Path, keep: int, every_s: float, layout: bytes, ledger: Ledger) -> None:
        self._store = Checkpoints(state / FOLDER, keep)
        self._every_s = every_s
        self._layout = layout.hex()
        self._ledger = ledger
        self._writing: asyncio.Task[None] | None = None
        self._due_s = time.monotonic() + every_s
        self._saved_s: float | None = None
        self._failures = 0
        self._failing = False

    # ------------------------------------------------------------------------------------------ back

    def restore(self, core: GossipCore, learner: Learner) -> dict[str, Any] | None:
        """Let a new core and learner go on from the newest checkpoint; return what it was, or None without one.

        Damaged ones are told in the journal. Raises ConfigError where it is of another model.
        """
        checkpoint = self._store.load()
        for name, reason in self._store.damaged:
            log.error("checkpoint damaged, set aside as %s: %s", name, reason)
            self._ledger.events["checkpoint_damaged"] += 1
            self._ledger.note("checkpoint_damaged", name=name, reason=reason)
        if checkpoint is None:
            return None
        if checkpoint.facts.get("layout") != self._layout:
            raise ConfigError(
                "the checkpoints are of another model than [task] makes now; restore the task, or move "
                f"{FOLDER}/ in the state folder away to start anew"
            )
        mine = {name.removeprefix("core/"): each for name, each in checkpoint.tensors.items() if name[:5] == "core/"}
        core.restore(CoreState(mine, checkpoint.facts["core"]))
        restore_learner(learner, _nested(checkpoint.tensors, "learner/"))
        return {"round": checkpoint.round, "checkpoint": checkpoint.number, "damaged": len(self._store.damaged)}

    # ------------------------------------------------------------------------------------------ there

    @property
    def due(self) -> bool:
        """Whether it is time for the next one, and none is being written."""
        return time.monotonic() >= self._due_s and (self._writing is None or self._writing.done())

    async def save(self, core: CoreState, learner: Mapping[str, Any], *, last: bool) -> None:
        """Write a checkpoint in the background; the ``last`` one is waited for."""
        if self._writing is not None and not self._writing.done():
            await self._writing
        self._due_s = time.monotonic() + self._every_s
        self._writing = asyncio.create_task(self._write(core, learner), name="daemon.checkpoint")
        if last:
            await self._writing

    async def _write(self, core: CoreState, learner: Mapping[str, Any]) -> None:
        tensors = {f"core/{name}": tensor for name, tensor in core.tensors.items()}
        tensors |= dict(_flat(learner, "learner/"))
        facts = {"core": dict(core.facts), "layout": self._layout}
        try:
            number = await asyncio.to_thread(self._store.save, tensors, facts, core.facts["round"])
        except CheckpointError as error:
            self._failures += 1
            self._due_s = time.monotonic() + min(self._every_s, RETRY_S)
            if not self._failing:
                log.error("%s; the site works on, and tries again", error)  # noqa: TRY400 - the line says it all
                self._ledger.events["checkpoint_failed"] += 1
                self._ledger.note("checkpoint_failed", detail=str(error))
            self._failing = True
            return
        if self._failing:
            log.warning("checkpoints are kept again")
        self._failing, self._saved_s = False, time.monotonic()
        self._ledger.note("checkpoint", number=number, round=core.facts["round"])

    def figures(self) -> list[Figure]:
        """Return what metrics tell."""
        figures = [Figure("gossipfl_checkpoint_failures_total", "Checkpoints that could not be kept.", self._failures)]
        if self._saved_s is not None:
            age = time.monotonic() - self._saved_s
            figures.append(Figure("gossipfl_checkpoint_age_seconds", "Since the last checkpoint was kept.", age))
        return figures


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Tensor]]:
    """Return the tensors of nested dictionaries by their paths."""
    found: list[tuple[str, Tensor]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}/")
        else:
            found.append((prefix + name, value.detach().cpu()))
    return found


def _nested(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Undo ``_flat``; keys hold no slash."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        *path, leaf = name.removeprefix(prefix).split("/")
        inside = tree
        for part in path:
            inside = inside.setdefault(part, {})
        inside[leaf] = tensor
    return tree
