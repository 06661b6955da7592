"""``gossipfl testbed run`` and ``gossipfl simulate``: one set of options, two engines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from gossipfl.config import TRANSPORTS, load_spec
from gossipfl.errors import GossipflError
from gossipfl.records import RunRecords, as_json_line, default_out

if TYPE_CHECKING:
    from gossipfl.config import RunSpec
    from gossipfl.records import Progress

Engine: TypeAlias = "Callable[[RunSpec, RunRecords, Progress], Mapping[str, Any]]"

FLAGS = ("nodes", "topology", "transport", "task", "rule", "attack", "byzantine", "rounds", "mode", "codec", "seed")
"""Options that set the key of the same name in the spec."""

TESTBED_EXAMPLES = """Examples:

gossipfl testbed run --nodes 8 --topology ring --rounds 20

gossipfl testbed run --attack sign-flip --byzantine 2 --set attack.strength=5

gossipfl testbed run demo.toml --transport memory --set train.lr=0.05 --json"""

SIMULATE_EXAMPLES = """Examples:

gossipfl simulate --nodes 100 --topology torus --rounds 50

gossipfl simulate demo.toml --rule mean --attack none --byzantine 0"""

NETWORK, LEARNING, OUTPUT = "Network", "Learning", "Records and output"


@dataclass(frozen=True, slots=True)
class Output:
    """Where a run's records go and what is printed of it."""

    out: Path | None
    force: bool
    json: bool
    quiet: bool
    report: bool


def _complete(names: Callable[[], Mapping[str, Any] | tuple[str, ...]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _tasks() -> Mapping[str, Any]:
    from gossipfl.tasks.registry import TASKS

    return TASKS


def _topologies() -> Mapping[str, Any]:
    from gossipfl.topology import TOPOLOGIES

    return TOPOLOGIES


SpecFile: TypeAlias = Annotated[
    Path | None,
    typer.Argument(metavar="SPEC.toml", help="A run's spec; options win over it.", show_default=False),
]
Nodes: TypeAlias = Annotated[int | None, typer.Option(metavar="N", help="Nodes (8).", rich_help_panel=NETWORK)]
Topology: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Graph family or file; see [bold]gossipfl topology list[/] (random-regular of degree 4).",
        autocompletion=_complete(_topologies),
        rich_help_panel=NETWORK,
    ),
]
Transport: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="mqtt: processes and a broker; libp2p: processes that dial each other; memory: virtual time (mqtt).",
        autocompletion=_complete(lambda: TRANSPORTS),
        rich_help_panel=NETWORK,
    ),
]
Mode: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="sync|async",
        help="Rounds in step, or none waiting for another (sync).",
        autocompletion=_complete(lambda: ("sync", "async")),
        rich_help_panel=NETWORK,
    ),
]
Codec: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="How deltas become bytes (float32).", rich_help_panel=NETWORK)
]
Task: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|module:factory",
        help="What is learnt (digits).",
        autocompletion=_complete(_tasks),
        rich_help_panel=LEARNING,
    ),
]
Rule: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Aggregation rule (pace).", rich_help_panel=LEARNING)
]
Attack: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What Byzantine nodes do; none for no attack.", rich_help_panel=LEARNING),
]
Byzantine: TypeAlias = Annotated[
    int | None, typer.Option(metavar="K", help="How many nodes attack (0).", rich_help_panel=LEARNING)
]
Rounds: TypeAlias = Annotated[int | None, typer.Option(metavar="R", help="Rounds (40).", rich_help_panel=LEARNING)]
Seed: TypeAlias = Annotated[
    int | None, typer.Option(metavar="S", help="Seed of everything random (0).", rich_help_panel=LEARNING)
]
Pairs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="key=value", help="Set any key of the spec, e.g. train.lr=0.05; repeatable."),
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for the records (runs/<time>-<name>).", rich_help_panel=OUTPUT),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print summary.json as the last line of stdout.", rich_help_panel=OUTPUT)
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no summary table.", rich_help_panel=OUTPUT)
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Replace the records that DIR already holds.", rich_help_panel=OUTPUT)
]
Report: TypeAlias = Annotated[
    bool, typer.Option("--report/--no-report", help="Draw figures and write report.html.", rich_help_panel=OUTPUT)
]


def run_command(engine: Engine, description: str) -> Callable[..., None]:
    """Return a command with the options of a run, which carries it out with ``engine``."""

    def command(
        context: typer.Context,
        spec: SpecFile = None,
        nodes: Nodes = None,
        topology: Topology = None,
        transport: Transport = None,
        mode: Mode = None,
        codec: Codec = None,
        task: Task = None,
        rule: Rule = None,
        attack: Attack = None,
        byzantine: Byzantine = None,
        rounds: Rounds = None,
        seed: Seed = None,
        pairs: Pairs = None,
        out: Out = None,
        force: Force = False,
        report: Report = True,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        given = load_spec(spec, {name: context.params[name] for name in FLAGS}, pairs or ())
        execute(engine, given, Output(out=out, force=force, json=as_json, quiet=quiet, report=report))

    command.__doc__ = description
    return command


def execute(engine: Engine, spec: RunSpec, output: Output) -> None:
    """Carry out one run, leave its records and report, and print what ``output`` asks for.

    A run that was interrupted and still left a summary is reported like any other before the interrupt goes on.
    """
    from gossipfl.cli.progress import watch

    out = output.out or default_out(spec, datetime.now().astimezone())
    interrupt: KeyboardInterrupt | None = None
    with RunRecords(out, force=output.force, started_s=process_started_s()) as records:
        records.write_spec(spec)
        try:
            with watch(spec, quiet=output.quiet) as progress:
                summary = engine(spec, records, progress)
            records.write_summary(summary)
        except KeyboardInterrupt as caught:
            if records.summary is None:
                raise
            summary, interrupt = records.summary, caught
    _tell(summary, out, output)
    if interrupt is not None:
        raise interrupt


def _tell(summary: Mapping[str, Any], out: Path, output: Output) -> None:
    page = _report(out) if output.report else None
    if not output.quiet:
        from gossipfl.cli.outcome import print_outcome

        # With --json, stdout is for programs: what people read moves to stderr.
        print_outcome(summary, out, page, sys.stderr if output.json else sys.stdout)
    if output.json:
        typer.echo(as_json_line(summary))


def process_started_s() -> float:
    """Return the start of this process on the monotonic clock, or now where the system does not tell."""
    now_s = time.monotonic()
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        ticks = float(stat.rpartition(")")[2].split()[19])
        return now_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return now_s


def _report(out: Path) -> Path | None:
    from gossipfl.report import write_report

    try:
        return write_report(out)
    except (GossipflError, OSError) as error:
        # The run is done and saved; a report can be drawn again from its records.
        typer.echo(f"gossipfl: warning: no report: {error}", err=True)
        return None


def _testbed(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
    from gossipfl.testbed.run import run_testbed

    return run_testbed(spec, records, progress)


def _simulator(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
    from gossipfl.testbed.simulated import run_simulation

    return run_simulation(spec, records, progress)


testbed_run = run_command(_testbed, "Run a network of real agents on this machine and record what happens.")
simulate = run_command(_simulator, "Run the same network as matrices, in one process, and record the same.")
