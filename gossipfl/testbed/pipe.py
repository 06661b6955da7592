"""What a node process tells the testbed: a stream of msgpack objects over a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from gossipfl.records import Event, NodeRound

ROW_FIELDS = tuple(field.name for field in fields(NodeRound))
MAX_MESSAGE_BYTES = 1 << 31

Told = Event | NodeRound | dict[str, Any]
"""An event, a row, or (a mapping) how the node ended."""


class PipeWriter:
    """The node's end. Events are gathered and leave with the next row, or with ``flush``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._packer = msgpack.Packer(use_bin_type=True, default=str)
        self._gathered: list[bytes] = []

    def event(self, event: Event) -> None:
        """Gather an event."""
        self._gathered.append(self._packer.pack(["event", event.t_s, event.event, event.node, dict(event.fields)]))
        if event.event not in {"accept", "reject"}:
            self.flush()

    def row(self, row: NodeRound) -> None:
        """Send what was gathered, and a row."""
        values = [getattr(row, name) for name in ROW_FIELDS]
        values[ROW_FIELDS.index("metrics")] = dict(row.metrics)
        self._gathered.append(self._packer.pack(["row", *values]))
        self.flush()

    def end(self, **how: Any) -> None:
        """Say how the node ended."""
        self._gathered.append(self._packer.pack(["end", how]))
        self.flush()

    def flush(self) -> None:
        """Write everything; blocks while the testbed is slower than this node."""
        view = memoryview(b"".join(self._gathered))
        self._gathered.clear()
        while view:
            view = view[os.write(self._descriptor, view) :]


@dataclass(frozen=True, slots=True)
class PipeReader:
    """The testbed's end of one node's pipe."""

    unpacker: Any

    @classmethod
    def new(cls) -> PipeReader:
        """Return a reader at the start of a stream."""
        return cls(msgpack.Unpacker(raw=False, max_buffer_size=MAX_MESSAGE_BYTES, strict_map_key=False))

    def feed(self, data: bytes) -> Iterator[Told]:
        """Take bytes as they come and yield what they complete."""
        self.unpacker.feed(data)
        for kind, *rest in self.unpacker:
            if kind == "event":
                t_s, event, node, told = rest
                yield Event(t_s, event, node, told)
            elif kind == "row":
                yield NodeRound(**dict(zip(ROW_FIELDS, rest, strict=True)))
            else:
                yield rest[0]
