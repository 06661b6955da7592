"""The sections of a specification: what each may hold, checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from gossipfl.tasks.base import Partition, TrainOptions

if TYPE_CHECKING:
    from gossipfl.gossip.settings import GossipSettings

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Delay = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[Path, Field(strict=False)]


class Spec(BaseModel):
    """Base of all sections: immutable, typed strictly, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NamedSpec(Spec):
    """A section that picks something by ``name``; every other key is one of its ``options``."""

    default_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options that a name has where none are given."""

    name: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping):
            return given
        rest = {key: value for key, value in given.items() if key not in {"name", "options"}}
        name = given.get("name", cls.model_fields["name"].default)
        defaults = cls.default_options.get(name, {}) if isinstance(name, str) else {}
        tables = given.get("options", {})
        options = {**defaults, **(tables if isinstance(tables, Mapping) else {"options": tables}), **rest}
        return {**({"name": given["name"]} if "name" in given else {}), "options": options}

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise PydanticCustomError("option", "must be a finite number", {"key": key})
            if not isinstance(value, str | int | float | list):
                raise PydanticCustomError("option", "must be one value or a list", {"key": key})
        return options

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class TopologySpec(NamedSpec):
    """The graph: a family with its options (``degree = 4``), or a file."""

    default_options = {"random-regular": {"degree": 4}}
    name: str = Field(default="random-regular", min_length=1)


class TaskSpec(NamedSpec):
    """What is learnt: a built-in task or ``module:factory``, with options such as ``path`` and ``model``."""

    name: str = Field(default="digits", min_length=1)


class RuleSpec(NamedSpec):
    """The aggregation rule and its options, such as ``gamma`` for balance."""

    name: str = Field(default="pace", min_length=1)


class CodecSpec(NamedSpec):
    """How deltas become bytes."""

    name: str = Field(default="float32", min_length=1)


class AttackSpec(NamedSpec):
    """What Byzantine nodes publish; ``none`` is no attack."""

    name: str | None = None  # type: ignore[assignment]

    @field_validator("name")
    @classmethod
    def _none(cls, name: str | None) -> str | None:
        return None if name in {None, "none", ""} else name


class PartitionSpec(Spec):
    """How training data is split over nodes; see ``gossipfl.tasks.base.Partition``."""

    name: Literal["auto", "iid", "dirichlet", "dirichlet-even", "label-groups", "shards", "files"] = "auto"
    alpha: float = Field(default=0.5, gt=0)
    h: Share = 0.8
    samples: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def partition(self) -> Partition:
        """Return the task seam's form of this section."""
        return Partition(name=self.name, alpha=self.alpha, h=self.h, samples=self.samples)


class TrainSpec(Spec):
    """Local training: ``local_steps`` optimiser steps of ``batch`` samples in each round.

    With ``init = "own"`` every node of the simulator starts from ``init_scale`` times N(0, 1) of its own; elsewhere
    all start from one model.
    """

    local_steps: Positive = 10
    batch: Positive = 32
    lr: float = Field(default=0.1, gt=0)
    schedule: Literal["constant", "inverse-sqrt"] = "constant"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    device: str = Field(default="cpu", min_length=1)
    init: Literal["common", "own"] = "common"
    init_scale: float = Field(default=1.0, gt=0)

    def options(self) -> TrainOptions:
        """Return the task seam's form of this section."""
        return TrainOptions(**self.model_dump(exclude={"local_steps", "init", "init_scale"}))


class GossipSpec(Spec):
    """Limits of the protocol core and the agent, times in seconds of the run's own clock.

    The core's are documented at ``gossipfl.gossip.GossipSettings``. ``join_timeout_s``: how long a node waits at the
    start for all its neighbours; ``drain_s``: how long it serves them at the end; ``step_s``: in virtual time, how
    long a local step takes, and ``spread``: by which factor nodes differ in speed (1: not at all).
    """

    deadline_s: Seconds = 60.0
    deadline_min_s: Seconds = 5.0
    heartbeat_s: Seconds = 1.0
    liveness_s: Seconds = 10.0
    outage_s: Seconds = 60.0
    ack_delay_s: Seconds = 0.5
    nudge_s: Seconds = 2.0
    nudge_min_s: Seconds = 0.2
    resync_s: Seconds = 0.25
    resync_max_s: Seconds = 5.0
    window_bytes: Positive = 4 << 20
    patience_s: Seconds = 5.0
    staleness_exponent: float = Field(default=0.5, ge=0)
    max_staleness: Positive = 50
    join_timeout_s: Seconds = 30.0
    drain_s: Seconds = 10.0
    step_s: Seconds = 0.01
    spread: float = Field(default=1.0, ge=1)

    def settings(self, mode: Literal["sync", "async"]) -> GossipSettings:
        """Return the core's form of this section."""
        from gossipfl.gossip.settings import GossipSettings

        known = {limit.name for limit in fields(GossipSettings)} - {"mode"}
        return GossipSettings(mode=mode, **self.model_dump(include=known))


class TlsSpec(Spec):
    """Certificates for the broker: the authority that signed it, and optionally this side's own pair."""

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None


class BrokerSpec(Spec):
    """The MQTT broker; with no ``host`` the testbed starts one of ``kind`` on loopback, on a free port."""

    host: str | None = Field(default=None, min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535)
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    tls: TlsSpec | None = None
    kind: Literal["embedded", "mosquitto"] = "embedded"


class Libp2pSpec(Spec):
    """Limits of the libp2p transport; see ``gossipfl.transports.libp2p.options.Libp2pOptions``."""

    ping_s: Seconds = 2.0
    dead_s: Seconds = 6.0
    window_bytes: Annotated[int, Field(ge=1 << 18)] = 1 << 20


class NetworkPartition(Spec):
    """From ``start_s`` to ``end_s`` no frame passes between ``groups``; nodes left out form one more."""

    start_s: float = Field(ge=0)
    end_s: float = Field(gt=0)
    groups: tuple[tuple[Count, ...], ...] = Field(strict=False, min_length=1)

    @field_validator("groups", mode="before")
    @classmethod
    def _tuples(cls, groups: Any) -> Any:
        if isinstance(groups, list) and all(isinstance(group, list) for group in groups):
            return tuple(tuple(group) for group in groups)
        return groups


class CrashSpec(Spec):
    """From ``start_s`` until ``end_s`` (None: for ever) nothing leaves or reaches ``node``."""

    node: Count
    start_s: float = Field(ge=0)
    end_s: Seconds | None = None


class FaultSpec(Spec):
    """Seeded faults of the memory transport; see ``gossipfl.transports.faults.FaultPlan``.

    Each of the shares is the probability that a frame is hit on a link. ``delay_s`` is a range [shortest,
    longest], or the longest alone.
    """

    drop: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    corrupt: Share = 0.0
    delay_s: Annotated[tuple[Delay, Delay], Field(strict=False)] = (0.0, 0.0)
    partitions: Annotated[tuple[NetworkPartition, ...], Field(strict=False)] = ()
    crashes: Annotated[tuple[CrashSpec, ...], Field(strict=False)] = ()

    @field_validator("delay_s", mode="before")
    @classmethod
    def _range(cls, delay_s: Any) -> Any:
        return (0.0, delay_s) if isinstance(delay_s, int | float) else delay_s
