"""federation.toml: how the sites of a federation are set up, kept for the sites that join later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gossipfl.sections import Positive, Spec

if TYPE_CHECKING:
    from pathlib import Path


class BrokerAddress(Spec):
    """Where sites reach the broker."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 8883


class SetUp(Spec):
    """What is written to every site's file.

    ``certificate_days``: how long a site's certificate for the broker holds.
    """

    federation: Annotated[str, Field(min_length=1)]
    transport: Literal["broker", "libp2p"] = "broker"
    broker: BrokerAddress | None = None
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 4001
    task: str = "digits"
    certificate_days: Positive = 730


def read_set_up(path: Path) -> SetUp:
    """Return what the file says; raises ConfigError."""
    from gossipfl.settings import Settings

    settings = Settings({})
    settings.add_file(path)
    return settings.validate(SetUp)


def format_set_up(set_up: SetUp) -> str:
    """Return the file's text."""
    lines = [
        "# How the sites of this federation are set up; `gossipfl federation add` reads it.",
        f"federation = {json.dumps(set_up.federation)}",
        f"transport = {json.dumps(set_up.transport)}",
        f"listen_port = {set_up.listen_port}",
        f"task = {json.dumps(set_up.task)}",
        f"certificate_days = {set_up.certificate_days}",
    ]
    if set_up.broker is not None:
        lines += ["", "[broker]", f"host = {json.dumps(set_up.broker.host)}", f"port = {set_up.broker.port}"]
    return "\n".join(lines) + "\n"
