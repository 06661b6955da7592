"""What the protocol core asks its shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gossipfl.identity import PeerId


@dataclass(frozen=True, slots=True)
class Send:
    """Put one frame on the wire; ``bulk`` frames (chunks) never go before others."""

    recipients: tuple[PeerId, ...]
    frame: bytes
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened that records, logs and metrics should know."""

    event: str
    peer: PeerId | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


Effect: TypeAlias = Send | Report
