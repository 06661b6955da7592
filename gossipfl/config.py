"""The specification of one run: what a TOML file, the options and ``--set`` may say, and what that means.

    spec = load_spec(Path("demo.toml"), {"rounds": 20}, ["train.lr=0.05"])

A section that has a ``name`` (topology, task, rule, attack, codec, partition) may be written as that name
alone: ``rule = "mean"`` equals ``[rule]`` with ``name = "mean"``. Its other keys are options of the named
thing, checked by the registry that builds it. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gossipfl.sections import (
    AttackSpec,
    BrokerSpec,
    CodecSpec,
    Count,
    FaultSpec,
    GossipSpec,
    Libp2pSpec,
    PartitionSpec,
    Positive,
    RuleSpec,
    Spec,
    TaskSpec,
    TopologySpec,
    TrainSpec,
)
from gossipfl.settings import Settings, choose

TRANSPORTS = ("memory", "mqtt", "libp2p")
EVALUATIONS = 20
"""How often a run evaluates where ``evaluate_every`` is left out."""


class RunSpec(Spec):
    """One run, complete: with the same spec and code, a deterministic transport gives the same run."""

    nodes: Positive = 8
    topology: TopologySpec = Field(default_factory=lambda: TopologySpec.model_validate("random-regular"))
    transport: str = "mqtt"
    task: TaskSpec = Field(default_factory=TaskSpec)
    partition: PartitionSpec = Field(default_factory=PartitionSpec)
    rule: RuleSpec = Field(default_factory=RuleSpec)
    attack: AttackSpec = Field(default_factory=AttackSpec)
    byzantine: Count = 0
    placement: str | tuple[Count, ...] = "random"
    rounds: Positive = 40
    mode: Literal["sync", "async"] = "sync"
    codec: CodecSpec = Field(default_factory=CodecSpec)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    train: TrainSpec = Field(default_factory=TrainSpec)
    evaluate_every: Positive | None = None
    personalise_steps: Count = 0
    gossip: GossipSpec = Field(default_factory=GossipSpec)
    broker: BrokerSpec = Field(default_factory=BrokerSpec)
    libp2p: Libp2pSpec = Field(default_factory=Libp2pSpec)
    faults: FaultSpec | None = None
    keep_vectors: bool = False
    averages: dict[str, tuple[Count, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _few_nodes(cls, given: Any) -> Any:
        """Give so few nodes that none can have four neighbours all the others as neighbours."""
        nodes = given.get("nodes") if isinstance(given, Mapping) else None
        topology = given.get("topology", "random-regular") if isinstance(given, Mapping) else None
        section = {"name": topology} if isinstance(topology, str) else topology
        if not (isinstance(nodes, int) and 2 <= nodes <= 4 and isinstance(section, Mapping)):
            return given
        if section.get("name", "random-regular") != "random-regular" or "degree" in {
            *section,
            *section.get("options", {}),
        }:
            return given
        return {**given, "topology": {**section, "degree": nodes - 1}}

    @field_validator("averages", mode="before")
    @classmethod
    def _groups(cls, groups: Any) -> Any:
        if not isinstance(groups, Mapping):
            return groups
        return {name: tuple(nodes) if isinstance(nodes, list) else nodes for name, nodes in groups.items()}

    @field_validator("placement", mode="before")
    @classmethod
    def _nodes(cls, placement: Any) -> Any:
        return tuple(placement) if isinstance(placement, list) else placement

    @field_validator("transport")
    @classmethod
    def _known_transport(cls, name: str) -> str:
        if name not in TRANSPORTS:
            problem = f'"{name}" is unknown{choose(name, TRANSPORTS)}'
            raise PydanticCustomError("transport", "{problem}", {"problem": problem})
        return name

    @model_validator(mode="after")
    def _together(self) -> RunSpec:
        for key, problem in self._conflicts():
            raise PydanticCustomError("conflict", "{problem}", {"key": key, "problem": problem})
        return self

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        attack, count = self.attack.name, self.byzantine
        if count >= self.nodes:
            yield "byzantine", f"must be less than nodes ({self.nodes}), or no honest node is left"
        if count and attack is None:
            yield "byzantine", f"is {count} without an attack; add --attack NAME, or --byzantine 0"
        if attack is not None and not count:
            yield "attack", f'"{attack}" has no node to act; add --byzantine K, or --attack none'
        if not isinstance(self.placement, str):
            yield from self._placement_conflicts(self.placement)
        for name, nodes in self.averages.items():
            if not nodes or max(nodes) >= self.nodes:
                yield f"averages.{name}", f"must list nodes from 0 to {self.nodes - 1}, not {list(nodes)}"
        if attack is None and self.attack.options:
            yield "attack", "has options but no name; add --attack NAME"
        if self.gossip.deadline_min_s > self.gossip.deadline_s:
            yield "gossip.deadline_min_s", f"must be at most gossip.deadline_s ({self.gossip.deadline_s})"
        if self.libp2p.ping_s >= self.libp2p.dead_s:
            yield "libp2p.ping_s", f"must be less than libp2p.dead_s ({self.libp2p.dead_s})"
        yield from self._broker_conflicts(self.broker)
        if self.faults is not None:
            yield from self._fault_conflicts(self.faults)

    def _placement_conflicts(self, nodes: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        if len(set(nodes)) != self.byzantine:
            yield "placement", f"lists {len(set(nodes))} nodes where byzantine is {self.byzantine}; make them agree"
        if max(nodes, default=0) >= self.nodes:
            yield "placement", f"names node {max(nodes)}, but nodes are 0 to {self.nodes - 1}"

    def _broker_conflicts(self, broker: BrokerSpec) -> Iterator[tuple[str, str]]:
        if broker.password is not None and broker.username is None:
            yield "broker.password", "needs a user; add broker.username"
        if broker.host is None and broker.tls is not None:
            yield "broker.tls", "needs a broker that speaks it; add broker.host"
        if broker.host is None and broker.kind == "mosquitto" and broker.username is not None:
            yield "broker.username", "is for a broker with users; add broker.host, or leave broker.kind out"
        if broker.tls is not None and broker.tls.key is not None and broker.tls.cert is None:
            yield "broker.tls.key", "needs its certificate; add broker.tls.cert"

    def _fault_conflicts(self, faults: FaultSpec) -> Iterator[tuple[str, str]]:
        last = self.nodes - 1
        if self.transport != "memory":
            yield "faults", f"need the memory transport, not {self.transport}; add --transport memory"
        if faults.delay_s[0] > faults.delay_s[1]:
            yield "faults.delay_s", f"must be [shortest, longest], not {list(faults.delay_s)}"
        for cut in faults.partitions:
            members = [node for group in cut.groups for node in group]
            if len(members) != len(set(members)):
                yield "faults.partitions", "names a node in two groups; a node belongs to one"
            if max(members, default=0) > last:
                yield "faults.partitions", f"names node {max(members)}, but nodes are 0 to {last}"
        for crash in faults.crashes:
            if crash.node > last:
                yield "faults.crashes", f"names node {crash.node}, but nodes are 0 to {last}"
        spans = [(cut.start_s, cut.end_s) for cut in faults.partitions]
        spans += [(crash.start_s, crash.end_s or math.inf) for crash in faults.crashes]
        for start_s, end_s in spans:
            if end_s <= start_s:
                yield "faults", f"must end after they start, not run from {start_s} s to {end_s} s"

    def evaluates(self, round_: int) -> bool:
        """Say whether models are measured after round ``round_`` (from 0); always after the last."""
        every = self.evaluate_every or math.ceil(self.rounds / EVALUATIONS)
        return (round_ + 1) % every == 0 or round_ == self.rounds - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values, in the form that a file may have, without the broker's password."""
        return self.model_dump(mode="json", exclude={"broker": {"password"}})

    @property
    def short_name(self) -> str:
        """A name for people and folders, e.g. ``digits-pace-sign-flip-8``."""
        words = [self.task.name, self.rule.name, self.attack.name, str(self.nodes)]
        return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(word for word in words if word))


SECTIONS: Mapping[str, str | None] = {
    "topology": "random-regular",
    "task": "digits",
    "rule": "pace",
    "codec": "float32",
    "attack": None,
    "partition": "auto",
}
"""Sections that may be written as a bare name, and the name that they have by default."""


def load_spec(path: Path | None, flags: Mapping[str, Any], sets: Sequence[str] = ()) -> RunSpec:
    """Return the run that a file, the options and ``--set`` pairs describe; the later of these three wins.

    ``flags`` maps a key to the value of the option of that name (None: not given). A topology from a file brings its
    number of nodes along. Raises ConfigError, and TopologyError for a graph file that cannot be used.
    """
    settings = Settings(SECTIONS)
    if path is not None:
        settings.add_file(path)
    for key, value in flags.items():
        if value is not None:
            settings.add_option(key, value, f"--{key.replace('_', '-')}")
    # A section's name comes before its options, whatever their order: a new name drops the old one's options.
    for pair in sorted(sets, key=lambda pair: not _names_a_section(pair)):
        settings.add_pair(pair)
    _count_nodes(settings)
    return settings.validate(RunSpec)


def _names_a_section(pair: str) -> bool:
    return pair.partition("=")[0].strip().removesuffix(".name") in SECTIONS


def _count_nodes(settings: Settings) -> None:
    """Where nodes were not given and the topology is a file, which knows its own number, take it from there."""
    topology = settings.get("topology")
    if topology is None or settings.get("nodes") is not None:
        return
    from gossipfl.topology import TOPOLOGIES, is_sequence, make_topology

    try:
        wanted = TopologySpec.model_validate(topology)
    except ValidationError:
        return  # told, with its place, when everything is validated
    if wanted.name not in TOPOLOGIES and not is_sequence(wanted.name):
        settings.add_option("nodes", make_topology(wanted.name, None, wanted.options).nodes, "topology")
