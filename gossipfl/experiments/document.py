"""An experiment as its TOML file tells it: the grid, the seeds, what is kept and what the report shows.

    document = read_document(Path("rules.toml"))

Keys of a run stand under ``[base]`` (one value for all runs) and under ``[grid]`` (a list of values, an axis).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError
from gossipfl.sections import Spec
from gossipfl.settings import Settings

Engine: TypeAlias = Literal["simulate", "testbed"]

ENGINES: tuple[Engine, ...] = ("simulate", "testbed")
"""What carries out a run: the dense simulator, or real agents over the run's transport."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Tables = Annotated[tuple[dict[str, Any], ...], Field(strict=False)]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ReportSpec(Spec):
    """The axes that are ``rows`` and ``columns`` of the tables, and their ``metrics``; the rest the report chooses."""

    rows: str | None = None
    columns: str | None = None
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Document(Spec):
    """The whole file. ``grid``, ``exclude`` and ``include`` are understood by ``gossipfl.experiments.axes``."""

    name: str
    engine: Engine = "simulate"
    seeds: Annotated[tuple[Seed, ...], Field(strict=False)] = (0,)
    records: Literal["light", "full"] = "light"
    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    exclude: Tables = ()
    include: Tables = ()
    report: ReportSpec = Field(default_factory=ReportSpec)

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if NAME.fullmatch(name) is None:
            raise PydanticCustomError("name", "must be letters, digits, dots and dashes: it names a folder")
        return name

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, seeds: Any) -> Any:
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            seeds = list(range(seeds))
        if isinstance(seeds, list) and not seeds:
            raise PydanticCustomError("seeds", "must be at least one; write seeds = 3, or seeds = [0, 1, 2]")
        if isinstance(seeds, list) and len({repr(seed) for seed in seeds}) < len(seeds):
            raise PydanticCustomError("seeds", "names a seed twice; the same run would count double")
        return seeds


def read_document(path: Path) -> Document:
    """Return the experiment in the file ``path``; raises ConfigError, in one line, for what cannot be meant."""
    settings = Settings()
    settings.add_option("name", _name_of(path), str(path))
    settings.add_file(path)
    for key in RunSpec.model_fields:
        if settings.get(key) is not None:
            raise ConfigError(f"{path}: {key} is a key of a run; write it under [base], or as a list under [grid]")
    return settings.validate(Document)


def _name_of(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "experiment"
