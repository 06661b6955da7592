"""The ``gossipfl`` command: testbed, simulator, topologies, experiments, federations, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gossipfl.cli import run
from gossipfl.cli.experiment import app as experiment
from gossipfl.cli.federation import app as federation
from gossipfl.cli.topology import app as topology
from gossipfl.entry import add_version_option, run_app

app = typer.Typer(
    name="gossipfl",
    help="Peer-to-peer federated learning without a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
testbed = typer.Typer(help="Real node processes, or agents in virtual time, on this machine.", no_args_is_help=True)

testbed.command("run", epilog=run.TESTBED_EXAMPLES)(run.testbed_run)
app.add_typer(testbed, name="testbed")
app.command("simulate", epilog=run.SIMULATE_EXAMPLES)(run.simulate)
app.add_typer(topology, name="topology")
app.add_typer(experiment, name="experiment")
app.add_typer(federation, name="federation")


@app.command(epilog="Example:  gossipfl report runs/20260101-120000-digits-pace-8")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run's records.", show_default=False)],
) -> None:
    """Draw a run's figures and write its one-page HTML report again."""
    from gossipfl.report import write_report

    typer.echo(write_report(directory))


add_version_option(app, "gossipfl")


def main() -> NoReturn:
    """Run the ``gossipfl`` command."""
    run_app(app, "gossipfl")
