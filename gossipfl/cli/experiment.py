"""``gossipfl experiment``: a grid of runs from one file, checked, carried out, reported."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipfl.entry import EXIT_FAILURE
from gossipfl.errors import ConfigError
from gossipfl.records import as_json_line

if TYPE_CHECKING:
    from rich.console import Console

    from gossipfl.experiments.executors import Executor
    from gossipfl.experiments.grid import Experiment
    from gossipfl.experiments.pivot import View
    from gossipfl.experiments.results import Results
    from gossipfl.experiments.run import Tally

FILE_WIDTH = 160
"""Characters in a line where no terminal says how many there are."""

PRINTED_TABLES = 12
"""Settings whose tables are printed; the page and results.csv have more."""

app = typer.Typer(
    name="experiment",
    help="Grids of runs: checked, carried out on all cores or a cluster, reported.",
    no_args_is_help=True,
)


class ExecutorName(StrEnum):
    """What carries out the cells."""

    local = "local"
    ray = "ray"


SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.toml", help="The experiment; see docs/experiments.md.")]
Engine = Annotated[ExecutorName, typer.Option("--engine", help="Processes of this machine, or a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster (RAY_ADDRESS, or a local one).")
]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Cells at once (one a core).")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the results (runs/<name>).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on in DIR: only what has no results yet is run.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="K", min=1, help="Run at most K cells, then stop.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check and count, as experiment check does.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, the last on stdout.")]


@app.command(epilog="Example:  gossipfl experiment check rules.toml")
def check(spec: SpecFile, workers: Workers = None, as_json: AsJson = False) -> None:
    """Check an experiment, count its cells, and estimate its time from short runs of a few of them."""
    from gossipfl.experiments.grid import load_experiment

    _tell_plan(load_experiment(spec), workers, as_json=as_json)


@app.command(
    epilog="Examples:\n\ngossipfl experiment run rules.toml --out runs/rules\n\n"
    "gossipfl experiment run rules.toml --out runs/rules --resume\n\n"
    "gossipfl experiment run rules.toml --engine ray --address 10.0.0.1:6379"
)
def run(
    spec: SpecFile,
    engine: Engine = ExecutorName.local,
    address: Address = None,
    workers: Workers = None,
    out: Out = None,
    resume: Resume = False,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Carry out the cells of an experiment; it can be killed at any moment and go on with --resume."""
    from gossipfl.experiments.checks import check_cells
    from gossipfl.experiments.folder import claimed
    from gossipfl.experiments.grid import load_experiment
    from gossipfl.experiments.progress import watch
    from gossipfl.experiments.run import run_experiment

    if address is not None and engine is not ExecutorName.ray:
        raise ConfigError("--address is of a Ray cluster; add --engine ray")
    experiment = load_experiment(spec)
    if dry_run:
        _tell_plan(experiment, workers, as_json=as_json)
        return
    out = out or Path("runs") / experiment.document.name
    with claimed(out, resume=resume):
        check_cells(experiment)
        executor = _executor(engine, experiment, out, workers, address)
        try:
            with watch(quiet=quiet) as watcher:
                tally = run_experiment(experiment, out, executor, watcher, limit=limit)
        except KeyboardInterrupt:
            typer.echo(f"gossipfl: interrupted; what was finished is in {out}, --resume goes on from there", err=True)
            raise
    _tell_tally(tally, out, quiet=quiet, as_json=as_json)
    if tally.failed:
        raise typer.Exit(EXIT_FAILURE)


@app.command(
    epilog="Examples:\n\ngossipfl experiment report runs/rules\n\n"
    "gossipfl experiment report runs/rules --rows rule --columns attack --metric accuracy_min\n\n"
    "gossipfl experiment report runs/rules --regret"
)
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an experiment.", show_default=False)],
    rows: Annotated[str | None, typer.Option("--rows", metavar="AXIS", help="Axis down the tables (rule).")] = None,
    columns: Annotated[str | None, typer.Option("--columns", metavar="AXIS", help="Axis across (attack).")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="What tables show (accuracy); repeatable.")
    ] = None,
    only_regret: Annotated[bool, typer.Option("--regret", help="Print what each row costs against the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print an experiment's tables, finished or not, and write its page, figures and files of all cells."""
    from gossipfl.experiments.page import write_report
    from gossipfl.experiments.pivot import choose_view
    from gossipfl.experiments.results import load_results

    results = load_results(directory)
    view = choose_view(results, rows, columns, metrics or ())
    page = write_report(results, view)
    console = _console(as_json=as_json)
    _tell_standing(results, console)
    if only_regret:
        _tell_regret(results, view, console)
    else:
        _tell_tables(results, view, console)
    console.print(f"report  {page}", soft_wrap=True)
    if as_json:
        typer.echo(as_json_line(_as_tree(results, view, page)))


def _executor(
    engine: ExecutorName, experiment: Experiment, out: Path, workers: int | None, address: str | None
) -> Executor:
    from gossipfl.experiments.executors import default_workers
    from gossipfl.experiments.folder import LOG_FILE, RUNS_FOLDER

    runs = out / RUNS_FOLDER if experiment.document.records == "full" else None
    if engine is ExecutorName.ray:
        from gossipfl.experiments.cluster import RayCluster

        return RayCluster(workers, address=address, runs=runs)
    from gossipfl.experiments.pool import LocalPool

    workers = workers or default_workers(experiment.grid.cells, os.cpu_count() or 1)
    return LocalPool(workers, log=out / LOG_FILE, runs=runs)


def _tell_plan(experiment: Experiment, workers: int | None, *, as_json: bool) -> None:
    from gossipfl.experiments.checks import check_cells
    from gossipfl.experiments.estimate import estimate
    from gossipfl.experiments.executors import default_workers
    from gossipfl.experiments.printed import axes_table
    from gossipfl.experiments.progress import duration

    grid = experiment.grid
    checked = check_cells(experiment)
    told = estimate(grid.cells, workers or default_workers(grid.cells, os.cpu_count() or 1))
    console = _console(as_json=as_json)
    console.print(axes_table(grid.axes))
    left_out = f"{grid.excluded} combinations excluded, {grid.merged} the same as another"
    facts = {
        "cells": f"{len(grid.cells):,} with {len(grid.seeds)} seeds; {left_out}",
        "checked": f"{checked.built} of {checked.plans} different plans",
        "a cell": f"about {told.cell_s:.2g} s, mean of {told.probed} that were tried",
        "in all": f"about {duration(told.total_s)} with workers: {told.workers}",
    }
    for title, fact in facts.items():
        console.print(f"{title:<8}{fact}", soft_wrap=True)
    if as_json:
        counts = {"cells": len(grid.cells), "seeds": len(grid.seeds), "excluded": grid.excluded, "merged": grid.merged}
        typer.echo(as_json_line({"axes": grid.axes, **counts, "checked": asdict(checked), "estimate": asdict(told)}))


def _tell_tally(tally: Tally, out: Path, *, quiet: bool, as_json: bool) -> None:
    console = _console(as_json=as_json)
    if not quiet:
        failed = f", {tally.failed} failed" if tally.failed else ""
        console.print(f"{tally.before + tally.done} of {tally.cells} cells have results{failed}")
        if tally.failed:
            console.print(f"why     {out / 'log.txt'}; --resume tries them again", soft_wrap=True)
        console.print(f"report  gossipfl experiment report {out}", soft_wrap=True)
    if as_json:
        typer.echo(as_json_line({"out": str(out), **asdict(tally), "left": tally.left}))


def _tell_standing(results: Results, console: Console) -> None:
    from gossipfl.experiments.ledger import DONE, FAILED
    from gossipfl.experiments.results import MISSING

    total, done = len(results.hashes), results.count(DONE)
    console.print(f"{results.name}: {done} of {total} cells", end="")
    lacking = [f"{results.count(status)} {status}" for status in (MISSING, FAILED) if results.count(status)]
    console.print("".join(f", {one}" for one in lacking))


def _tell_tables(results: Results, view: View, console: Console) -> None:
    from gossipfl.experiments.pivot import pivots
    from gossipfl.experiments.printed import pivot_table

    for metric in view.metrics:
        tables = pivots(results, view, metric)
        for table in tables[:PRINTED_TABLES]:
            console.print(pivot_table(table))
        if len(tables) > PRINTED_TABLES:
            console.print(f"{len(tables) - PRINTED_TABLES} more settings; the page has them, results.csv all of them")


def _tell_regret(results: Results, view: View, console: Console) -> None:
    from gossipfl.experiments.printed import regret_table
    from gossipfl.experiments.regret import regret

    for metric in view.metrics:
        console.print(regret_table(regret(results, view.rows, metric, across=view.columns)))


def _as_tree(results: Results, view: View, page: Path) -> dict[str, Any]:
    from gossipfl.experiments.pivot import pivots
    from gossipfl.experiments.regret import regret

    tables = []
    for metric in view.metrics if results.metrics else ():
        for table in pivots(results, view, metric):
            places = [
                {view.rows: row, **({view.columns: column} if view.columns else {}), **asdict(place)}
                for (row, column), place in table.places.items()
            ]
            tables.append({"metric": metric, "setting": dict(table.setting), "places": places})
    regrets = [
        asdict(regret(results, view.rows, metric, across=view.columns))
        for metric in (view.metrics if results.metrics else ())
    ]
    counts = {status: results.count(status) for status in dict.fromkeys(results.statuses)}
    return {"name": results.name, "cells": counts, "tables": tables, "regret": regrets, "page": str(page)}


def _console(*, as_json: bool) -> Console:
    """Return where people read; with --json, stdout is for programs."""
    from rich.console import Console

    file = sys.stderr if as_json else sys.stdout
    return Console(file=file, markup=False, highlight=False, width=None if file.isatty() else FILE_WIDTH)
