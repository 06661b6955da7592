"""What others may see of a running daemon: metrics and health over HTTP, and the audit log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError
from gossipfl_node.audit import AuditLog, Turning
from gossipfl_node.config import HealthSection
from gossipfl_node.health import Vitals, health_server, pages, shown, stall_limit_s
from gossipfl_node.metrics import Figure, Metrics

if TYPE_CHECKING:
    import asyncio

    from gossipfl.agent import Observer, RoundReport
    from gossipfl.gossip import Report
    from gossipfl_node.resumption import Resumption
    from gossipfl_node.site import Site
    from gossipfl_node.status import Ledger, Standing

log = logging.getLogger(__name__)


class Watch:
    """Everything that looks at one daemon; also its agent's observer, for all of them and the ledger.

    ``phase`` says what the daemon is doing, ``agent`` is its agent's task once there is one.
    """

    def __init__(
        self,
        site: Site,
        standing: Standing,
        audit: AuditLog,
        resumption: Resumption,
        phase: Callable[[], str],
        agent: Callable[[], asyncio.Task[Any] | None],
    ) -> None:
        ledger = standing.ledger
        self._site = site
        self._audit = audit
        self._turning = Turning(audit.add, ledger.name_of)
        self._metrics = Metrics(standing, phase)
        self._metrics.contribute("audit", audit.figures)
        self._metrics.contribute("checkpoints", resumption.figures)
        self._metrics.contribute("membership", lambda: _membership_figures(standing, ledger))
        self._observers: tuple[Observer, ...] = (ledger, self._metrics, self._turning)
        self.vitals = Vitals(standing, phase, agent, stall_limit_s(site.spec))

    def on_round(self, report: RoundReport) -> None:
        """Tell all observers of a round."""
        for observer in self._observers:
            observer.on_round(report)

    def on_event(self, t_s: float, report: Report) -> None:
        """Tell all observers of an event."""
        for observer in self._observers:
            observer.on_event(t_s, report)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve metrics and health for as long as the context lasts.

        An address that was not asked for and is taken is no reason not to work: it is logged. Raises ConfigError for
        one that site.toml names.
        """
        section = self._site.spec.health
        if section is not None and not section.enabled:
            yield
            return
        where = HealthSection() if section is None else section
        async with contextlib.AsyncExitStack() as stack:
            try:
                served = pages(self._metrics, self.vitals)
                address = await stack.enter_async_context(health_server(where.host, where.port, served))
            except ConfigError as error:
                if section is not None:
                    raise
                log.warning("%s; name another port in [health], or set enabled = false there", error)
            else:
                log.info("metrics and health at http://%s", shown(*address))
            yield

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Note the start of the daemon."""
        self._audit.add("start", facts)

    def restored(self, facts: Mapping[str, Any]) -> None:
        """Note that the site goes on from a checkpoint."""
        self._audit.add("restored", facts)

    def end(self, facts: Mapping[str, Any]) -> None:
        """Note its end, and the totals since the last time."""
        self._turning.finish()
        self._audit.add("stop", facts)
        self._audit.flush()

    def flush(self) -> None:
        """Bring what waits to the disk."""
        self._audit.flush()


def _membership_figures(standing: Standing, ledger: Ledger) -> list[Figure]:
    charters = standing.core.exchange.affairs.charters
    version = 0 if charters is None else charters.version
    return [
        Figure("gossipfl_membership_version", "The version of the membership in force; 0: it has none.", version),
        Figure("gossipfl_members", "How many sites belong to the federation.", len(ledger.federation.membership)),
        Figure("gossipfl_convicted_members", "How many members have equivocated.", len(standing.core.proofs)),
    ]
