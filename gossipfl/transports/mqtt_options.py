"""Where an MQTT broker is, how to log in, and which topics a federation uses there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from gossipfl.errors import ConfigError, TransportUnavailable
from gossipfl.transports.base import PeerId

_TOPIC_LEVEL = re.compile(r"[A-Za-z0-9._-]{1,128}")


class NoUseRetrying(TransportUnavailable):
    """A person has to mend something first: a password, a certificate, a permission."""


class _TidySocket(ssl.SSLSocket):
    """A TLS socket that closes itself when its handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS: who signs the broker's certificate, and this site's own certificate, if it has one.

    Without ``ca`` it is whoever this system trusts.
    """

    ca: str | None
    certificate: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return a client context that checks the broker's name; NoUseRetrying names an unusable file."""
        path = self.ca
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                path = self.certificate
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one too
            raise NoUseRetrying(
                f"TLS file {path} cannot be used: {error.strerror or error}; name a readable PEM file"
            ) from None
        context.sslsocket_class = _TidySocket
        return context


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How to reach and use a broker.

    ``socket_path`` names a broker's Unix domain socket and takes the place of ``host`` and ``port``: on one machine
    it halves the CPU time per byte and, in a private folder, keeps other users out. ``qos`` 0 suffices, because
    the protocol above acknowledges end to end; 1 costs more and lets ``send`` wait for the broker's answer.
    Frames over ``inbox_frames`` or ``inbox_bytes`` that the agent has not taken yet are dropped, newest first.

    Raises ConfigError for a value that cannot be used.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    socket_path: str | None = None
    federation: str = "default"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    qos: Literal[0, 1] = 0
    keepalive_s: int = 30
    timeout_s: float = 5.0
    """Longest wait for the broker's answer to a connection, a subscription or a probe."""

    start_tries: int = 5
    """Connections that ``start`` tries before it gives up; a link that breaks later is retried for ever."""

    backoff_s: tuple[float, float] = (0.1, 10.0)
    """The first and the longest wait between two tries; after the longest one a refused topic is asked for again."""

    inbox_frames: int = 1024
    inbox_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not _TOPIC_LEVEL.fullmatch(self.federation):
            raise ConfigError(
                f"mqtt: federation {self.federation!r} cannot be part of a topic; use letters, digits, '.', '_', '-'"
            )
        if not 0 < self.port < 65536:
            raise ConfigError(f"mqtt: port {self.port} does not exist; use 1 to 65535")
        if self.qos not in (0, 1):
            raise ConfigError(f"mqtt: qos {self.qos} is not supported; use 0 or 1")
        if self.keepalive_s < 1 or self.start_tries < 1 or self.timeout_s <= 0:
            raise ConfigError("mqtt: keepalive_s and start_tries are at least 1, and timeout_s is above 0")
        if not 0 < self.backoff_s[0] <= self.backoff_s[1]:
            raise ConfigError(f"mqtt: backoff_s = {self.backoff_s}; use two times above 0, shortest first")
        if self.socket_path is not None and self.tls is not None:
            raise ConfigError("mqtt: TLS needs host and port; a Unix domain socket has no use for it")

    @property
    def address(self) -> str:
        """The broker's address, for people."""
        return self.socket_path or f"{self.host}:{self.port}"


class Topics:
    """The topics of one site: it publishes under its own id only, so that a broker's ACL can hold it to that.

        gossipfl/<federation>/<sender>/all              to every peer of the sender
        gossipfl/<federation>/<sender>/to/<recipient>   to one peer

    Raises ConfigError for an id that cannot be part of a topic.
    """

    def __init__(self, federation: str, me: PeerId, peers: Collection[PeerId]) -> None:
        _check_ids((me, *peers))
        self._root = f"gossipfl/{federation}"
        self._me = me
        self.broadcast = f"{self._root}/{me}/all"
        self.own = f"{self._root}/{me}/to/{me}"
        self.change_peers(peers)

    def change_peers(self, peers: Collection[PeerId]) -> None:
        """Have the topics of other peers; raises ConfigError, and changes nothing, for an id that cannot be used."""
        _check_ids(peers)
        root, me = self._root, self._me
        self.to = {peer: f"{root}/{me}/to/{peer}" for peer in sorted(peers)}
        self.sender_of: dict[str, PeerId] = {}
        for peer in sorted(peers):
            self.sender_of[f"{root}/{peer}/all"] = peer
            self.sender_of[f"{root}/{peer}/to/{me}"] = peer

    def heard(self) -> list[str]:
        """Return what a site that is set up has subscribed to."""
        return [*self.sender_of, self.own]

    def probes(self) -> list[str]:
        """Return the topics on which a site can hear itself, to find out whether the broker lets it speak."""
        return [self.own, self.broadcast]


def _check_ids(peers: Collection[PeerId]) -> None:
    for peer in peers:
        if not _TOPIC_LEVEL.fullmatch(peer):
            raise ConfigError(f"mqtt: peer id {peer!r} cannot be part of a topic; use letters, digits, '.', '_', '-'")
