"""A daemon's status document, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gossipfl.summary import quantity

COLUMNS = ("neighbour", "state", "last heard", "round", "staleness", "accepted", "rejected")
LINK_COLUMNS = ("link to", "state", "for", "address, or why not")


def print_status(document: Mapping[str, Any]) -> None:
    """Print the document to stdout."""
    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for title, text in _facts(document):
        facts.add_row(title, text)
    console.print(facts)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for neighbour in document["neighbours"]:
        table.add_row(*_row(neighbour))
    console.print(table)
    if document["libp2p"] is not None:
        console.print(_link_table(document["libp2p"]["links"]))


def _link_table(links: Mapping[str, Any]) -> Table:
    """Return a table of its own: an address takes half a line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in LINK_COLUMNS:
        table.add_column(column, overflow="fold")
    for name, link in links.items():
        where = ": ".join(text for text in (link["address"], link["detail"]) if text)
        table.add_row(name, link["state"], _duration(link["since_s"]), where or "-")
    return table


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    traffic = document["traffic"]
    ended = f" of {document['rounds']}" if document["rounds"] else ""
    facts = [
        ("site", f"{document['site']}  {document['peer_id']}  in {document['federation']}"),
        ("daemon", f"{document['phase']}, process {document['pid']}, incarnation {document['incarnation']}"),
        ("up", f"{_duration(document['uptime_s'])}, since {document['up_since']}"),
        *_membership(document["membership"]),
        _transport(document),
        ("round", f"{document['round']}{ended} ({document['mode']}, {document['rule']}, {document['codec']})"),
    ]
    last, evaluation = document["last_round"], document["evaluation"]
    if last is not None:
        facts.append(("training", f"loss {last['loss']:.4g}, {_duration(last['ended_s_ago'])} ago"))
    if evaluation is not None:
        accuracy = "" if evaluation["accuracy"] is None else f", accuracy {evaluation['accuracy']:.3f}"
        loss = "unknown" if evaluation["loss"] is None else f"{evaluation['loss']:.4g}"
        facts.append(("test", f"loss {loss}{accuracy}, at round {evaluation['round']}"))
    facts.append(
        ("traffic", f"{quantity(traffic['bytes_sent'], 'B')} sent, {quantity(traffic['bytes_received'], 'B')} received")
    )
    dropped = document["dropped"] | traffic["frames_dropped"]
    if dropped:
        facts.append(("dropped", ", ".join(f"{count} {reason}" for reason, count in dropped.items())))
    return facts


def _membership(membership: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if membership is None:
        return []
    secret = "encrypted" if membership["encrypted"] else "not encrypted"
    text = f"version {membership['version']} of {membership['issued']}, {membership['members']} sites, {secret}"
    return [("membership", text)]


def _transport(document: Mapping[str, Any]) -> tuple[str, str]:
    broker, libp2p = document["broker"], document["libp2p"]
    if libp2p is None:
        up = f"{broker['address']} {broker['link']} for {_duration(broker['since_s'])}"
        return "broker", up + _reconnects(broker)
    links = libp2p["links"].values()
    up = f"{sum(link['state'] == 'up' for link in links)} of {len(links)} links up" + _reconnects(libp2p)
    listening = f"listening on {', '.join(libp2p['listening'])}" if libp2p["listening"] else "not listening"
    return "libp2p", f"{listening}; {up}"


def _reconnects(transport: Mapping[str, Any]) -> str:
    count = transport["reconnects"]
    return f", {count} reconnections" if count else ""


def _row(neighbour: Mapping[str, Any]) -> list[str]:
    state = neighbour["state"] + (f" ({neighbour['refused']})" if neighbour["refused"] else "")
    heard = neighbour["last_heard_s"]
    return [
        neighbour["name"],
        state,
        "never" if heard is None else f"{_duration(heard)} ago",
        *(_known(neighbour[key]) for key in ("round", "staleness", "accepted", "rejected")),
    ]


def _known(value: Any) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(f"{count} {unit}" for count, unit in [part for part in parts if part[0]][:2])
