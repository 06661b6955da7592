"""Why a neighbour was refused: what the journal and the evidence say, whether or not the daemon runs."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gossipfl.errors import ConfigError
from gossipfl.settings import suggest
from gossipfl_node.journal import OLDER_FILES
from gossipfl_node.memberships import known_proofs
from gossipfl_node.state import EVENTS_FILE

VERDICTS = {"accept": "accepted", "reject": "rejected"}
QUIET = frozenset({"keyframe", "resync", "miss"})
"""Events that are daily bread: they are counted, and not listed."""
MAX_LINE_BYTES = 1 << 20


@dataclass
class Account:
    """What is known of one neighbour: ``verdicts`` and ``events`` are the last ones, oldest first."""

    name: str
    peer_id: str | None = None
    totals: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    verdicts: deque[dict[str, Any]] = field(default_factory=deque)
    events: deque[dict[str, Any]] = field(default_factory=deque)
    counts: Counter[str] = field(default_factory=Counter)
    evidence: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "peer": self.name,
            "peer_id": self.peer_id,
            "verdicts": dict(self.totals),
            "reasons": dict(self.reasons),
            "last_verdicts": list(self.verdicts),
            "events": dict(self.counts),
            "last_events": list(self.events),
            "evidence": self.evidence,
        }


def account_of(state: Path, peer: str, *, members: Mapping[str, str], last: int) -> Account:
    """Return what the state folder knows of a neighbour, by name or peer id; ``members`` maps names to peer ids.

    Raises ConfigError where nobody of that name is known.
    """
    named = {peer_id: name for name, peer_id in members.items()}
    name = named.get(peer, peer)
    account = Account(name, members.get(name), verdicts=deque(maxlen=last), events=deque(maxlen=last))
    seen = set()
    for entry in _entries(state):
        who = entry.get("peer")
        if isinstance(who, str):
            seen.add(who)
        if who == name:
            _add(account, entry)
    proofs = known_proofs(state)
    if account.peer_id in proofs:
        account.evidence = proofs[account.peer_id].contradiction
    if name not in seen and name not in members and peer not in proofs:
        known = sorted(seen | set(members))
        raise ConfigError(
            f'nothing is known of "{peer}"{suggest(peer, known)}; known: {", ".join(known[:8]) or "nobody"}'
        )
    return account


def _add(account: Account, entry: dict[str, Any]) -> None:
    event = str(entry.get("event"))
    if event in VERDICTS:
        account.totals[VERDICTS[event]] += 1
        if event == "reject" or entry.get("reason"):
            account.reasons[str(entry.get("reason") or "no reason given")] += 1
        account.verdicts.append({"verdict": VERDICTS[event], **_fields(entry)})
        return
    account.counts[event] += 1
    if event not in QUIET:
        account.events.append({"event": event, **_fields(entry)})


def _fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in {"event", "peer", "node", "t"}}


def _entries(state: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's entries, oldest first; half a line that a crash has left is passed over."""
    newest = state / EVENTS_FILE
    paths = [newest.with_name(f"{newest.name}.{number}") for number in range(OLDER_FILES, 0, -1)]
    for path in [*paths, newest]:
        try:
            with path.open("rb") as file:
                while line := file.readline(MAX_LINE_BYTES):
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict):
                        yield entry
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"journal {path} cannot be read: {error.strerror}") from None


def print_account(account: Account) -> None:
    """Print an account for people."""
    console = Console(highlight=False, markup=False)
    console.print(f"{account.name}  {account.peer_id or 'no member now'}")
    totals = ", ".join(f"{count} times {verdict}" for verdict, count in sorted(account.totals.items()))
    console.print(f"in the journal: {totals or 'no verdict'}")
    for reason, count in account.reasons.most_common():
        console.print(f"  {count} x {reason}")
    if account.evidence is not None:
        console.print(f"convicted: it has signed {account.evidence}")
    if account.verdicts:
        console.print(_verdict_table(account))
    for event in account.events:
        told = ", ".join(f"{key} {value}" for key, value in event.items() if key not in {"event", "time"})
        console.print(f"{event.get('time', '')}  {event['event']}" + (f": {told}" if told else ""))


def _verdict_table(account: Account) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("time", "round", "verdict", "distance", "threshold", "why"):
        table.add_column(column, justify="right" if column in {"round", "distance", "threshold"} else "left")
    for verdict in account.verdicts:
        table.add_row(
            str(verdict.get("time", "")),
            str(verdict.get("round", "")),
            verdict["verdict"],
            _number(verdict.get("distance")),
            _number(verdict.get("threshold")),
            str(verdict.get("reason", "")),
        )
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
