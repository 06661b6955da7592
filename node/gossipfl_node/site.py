"""From a site's file to its working parts: key, learner, protocol core, transport."""

from __future__ import annotations

import dataclasses
import os
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError, DataError
from gossipfl.identity import Identity
from gossipfl_node.direct import options_of
from gossipfl_node.federation import Federation

if TYPE_CHECKING:
    from gossipfl.agent import AgentOptions
    from gossipfl.gossip import GossipCore
    from gossipfl.membership.document import Document
    from gossipfl.messages import Veil
    from gossipfl.tasks.base import Learner
    from gossipfl.transports.libp2p.transport import Libp2pTransport
    from gossipfl.transports.mqtt import MqttTransport
    from gossipfl.transports.mqtt_options import MqttOptions, TlsFiles
    from gossipfl_node.config import BrokerSection, SiteSpec

PATIENT_TRIES = 2**31
"""Tries to reach a broker that is waited for: about for ever."""
MAX_PASSWORD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Site:
    """One site's parts, built from its spec on first use; whatever cannot be built raises a UsageError."""

    spec: SiteSpec

    @cached_property
    def federation(self) -> Federation:
        """Members, neighbours, weights."""
        return Federation.of(self.spec.federation, self.spec.site.name)

    @cached_property
    def identity(self) -> Identity:
        """This site's key, which must be that of the member of its name."""
        return load_key(self.spec)

    @cached_property
    def documents(self) -> list[Document]:
        """The versions of the membership that are known here, oldest first; none where it has no versions."""
        from gossipfl_node.memberships import known_versions

        installed = self.spec.federation.membership
        return [] if installed is None else known_versions(installed, self.spec.site.state)

    def veil(self) -> Veil | None:
        """Return what seals messages, or None in a federation that has never had a key."""
        from gossipfl.messages import Veil
        from gossipfl_node.memberships import federation_key

        me = self.identity
        mine = [each for each in self.documents if each.name_of(me.peer_id) is not None]
        keys = {each.content.version: federation_key(each, me) for each in mine}
        return Veil(keys, os.urandom) if any(keys.values()) else None

    def learner(self, incarnation: int) -> Learner:
        """Return the learner on this site's data: the common initial model, batches in an order of this start's own."""
        from gossipfl.tasks.registry import load_task

        spec = self.spec
        if spec.train.init != "common":
            raise ConfigError('train.init = "own" is for the simulator: sites start from one model; leave it out')
        seed, share = spec.federation.model_seed, spec.share
        if share.index >= share.of:
            raise ConfigError(f"share.index must be less than share.of ({share.of}), not {share.index}")
        task = load_task(spec.task.name, spec.task.options)
        shards = task.shards(share.of, spec.partition.partition(), derive_seed(seed, "partition"))
        if len(shards) != share.of:
            raise DataError(f'task "{spec.task.name}" made {len(shards)} shards, not {share.of}; see share.of')
        return task.learner(
            shards[share.index],
            spec.train.options(),
            model_seed=derive_seed(seed, "model"),
            order_seed=derive_seed(seed, "order", spec.site.name, incarnation),
        )

    def core(self, learner: Learner, incarnation: int) -> GossipCore:
        """Return the protocol core around the initial model of ``learner``."""
        from gossipfl.codec import make_codec
        from gossipfl.gossip import Charters, GossipCore, Knowledge, Party
        from gossipfl.robust.registry import make_rule

        spec = self.spec
        federation = self.federation
        return GossipCore(
            Party(self.identity, federation.membership, incarnation, federation.weights),
            learner.layout.digest,
            learner.vector.detach().cpu(),
            make_rule(spec.rule.name, spec.rule.options),
            make_codec(spec.codec.name, spec.codec.options),
            spec.gossip.settings(spec.mode),
            knowledge=Knowledge(horizon=spec.rounds, losses=getattr(learner, "losses", None)),
            charters=Charters(self.documents) if self.documents else None,
        )

    def broker_transport(self, *, patient: bool = False) -> MqttTransport:
        """Return the way to the broker; a ``patient`` one tries to reach it for ever."""
        from gossipfl.transports.mqtt import MqttTransport

        options = self.mqtt_options(PATIENT_TRIES if patient else 3)
        return MqttTransport(self.identity.peer_id, list(self.federation.weights), options)

    def direct_transport(self, incarnation: int, remembered: Iterable[bytes]) -> Libp2pTransport:
        """Return the links to the neighbours; ``remembered`` are the address records of former starts."""
        options = options_of(self.spec, incarnation)
        from gossipfl.transports.libp2p.transport import Libp2pTransport

        federation = self.federation
        members = [member.peer_id for member in federation.membership]
        neighbours = list(federation.weights)
        return Libp2pTransport(self.identity, neighbours, options, members=members, remembered=remembered)

    def listener(self) -> Libp2pTransport:
        """Return a transport that listens where this site would, dials nobody and lets nobody in."""
        options = options_of(self.spec, incarnation=1)
        from gossipfl.transports.libp2p.transport import Libp2pTransport

        return Libp2pTransport(self.identity, [], dataclasses.replace(options, addresses={}, mdns=False))

    def mqtt_options(self, start_tries: int) -> MqttOptions:
        """Return how to reach and log in to the broker."""
        from gossipfl.transports.mqtt_options import MqttOptions

        broker = self.spec.broker
        assert broker is not None
        return MqttOptions(
            host=broker.host,
            port=broker.port_number,
            federation=self.spec.federation.name,
            username=broker.username,
            password=load_password(broker),
            tls=None if broker.tls is None else _tls_files(broker),
            start_tries=start_tries,
        )

    def agent_options(self) -> AgentOptions:
        """Return how the agent works."""
        from gossipfl.agent import AgentOptions, CatchUp, Guard

        spec, late = self.spec, self.spec.catch_up
        return AgentOptions(
            local_steps=spec.train.local_steps,
            rounds=spec.rounds,
            evaluates=spec.evaluates,
            mode=spec.mode,
            join_timeout_s=spec.gossip.join_timeout_s,
            drain_s=spec.gossip.drain_s,
            round_every_s=spec.site.round_every_s,
            catch_up=CatchUp(late.rounds, late.wait_s, late.slack) if late.rounds else None,
            guard=None if spec.guard is None else Guard(spec.guard.worse),
        )


def load_key(spec: SiteSpec) -> Identity:
    """Return the site's key; ConfigError where it is missing, open to others, or not the one the members list."""
    identity = Identity.load(spec.site.key)
    members = spec.federation.members
    listed = members.get(spec.site.name)
    if listed is not None and listed != identity.peer_id:
        owner = next((name for name, peer_id in members.items() if peer_id == identity.peer_id), None)
        whose = f'is that of "{owner}"' if owner is not None else f"has the peer id {identity.peer_id}"
        raise ConfigError(
            f'key file {spec.site.key} {whose}, but federation.members lists {listed} for "{spec.site.name}"; '
            "correct one of them"
        )
    return identity


def load_password(broker: BrokerSection) -> str | None:
    """Return the broker's password, from the file where one is named; raises ConfigError that names the file."""
    path = broker.password_file
    if path is None:
        return broker.password
    if broker.password is not None:
        raise ConfigError("broker.password and broker.password_file are both given; keep the file")
    if broker.username is None:
        raise ConfigError("broker.username is missing; a password needs one")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise ConfigError(f"password file {path} is open to other users; run: chmod o= {path}")
            content = file.read(MAX_PASSWORD_BYTES)
    except OSError as error:
        raise ConfigError(f"password file {path} cannot be read: {error.strerror}") from None
    try:
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"password file {path} is no UTF-8 text") from None
    if not password or "\n" in password:
        raise ConfigError(f"password file {path} must hold one line, the password")
    return password


def _tls_files(broker: BrokerSection) -> TlsFiles:
    from gossipfl.transports.mqtt_options import TlsFiles

    assert broker.tls is not None
    ca = broker.tls.ca or ssl.get_default_verify_paths().cafile
    if ca is None:
        raise ConfigError("broker.tls.ca is missing, and this system has no list of authorities; name a PEM file")
    certificate, key = broker.tls.cert, broker.tls.key
    if key is not None and certificate is None:
        raise ConfigError("broker.tls.cert is missing; a key needs its certificate")
    return TlsFiles(str(ca), _text(certificate), _text(key))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
