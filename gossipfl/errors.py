"""Every error that gossipfl raises on purpose.

    GossipflError
    ├── UsageError              a person's mistake: one line, exit code 2
    │   ├── ConfigError         a wrong option, key or value
    │   ├── TopologyError       a graph that cannot carry the run
    │   └── DataError           a data set that is missing, malformed or not finite
    ├── WireError               bytes from a peer that are not what they claim; counted and dropped
    │   ├── CodecError          a payload that no codec accepts
    │   └── MessageError        a frame or message that breaks the wire format
    ├── LayoutError             two models whose vectors do not line up
    └── TransportError          the wire below the protocol
        ├── TransportUnavailable    it cannot be reached now (a UsageError's text at start-up)
        └── TransportClosed         it was closed by its owner

A ``UsageError`` carries what is wrong, where, and how to mend it, in one line.
"""

from __future__ import annotations


class GossipflError(Exception):
    """Root of all errors raised on purpose."""


class UsageError(GossipflError):
    """A person's mistake, told in one line; command lines exit with 2."""


class ConfigError(UsageError):
    """An option, key or value that cannot be used."""


class TopologyError(UsageError):
    """A graph that cannot be made, read, or carry the run."""


class DataError(UsageError):
    """A data set that is missing, malformed or not finite."""


class WireError(GossipflError):
    """Bytes from a peer that are not what they claim to be."""


class CodecError(WireError):
    """A payload that does not decode to a finite vector of the expected size."""


class MessageError(WireError):
    """A frame or message that breaks the wire format; ``reason`` is a short counted label."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LayoutError(GossipflError):
    """Two models whose vectors do not line up."""


class TransportError(GossipflError):
    """The wire below the protocol failed."""


class TransportUnavailable(TransportError):
    """The transport cannot be reached now."""


class TransportClosed(TransportError):
    """The transport was closed by its owner."""
