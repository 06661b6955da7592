"""The ``gossipfl-node`` command: run, check and ask one site's daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeAlias

import typer

from gossipfl.entry import EXIT_USAGE, add_version_option, run_app
from gossipfl.errors import ConfigError

app = typer.Typer(
    name="gossipfl-node",
    help="The daemon of one site: trains on the site's own data and gossips models with its neighbours.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

audit = typer.Typer(help="What the site did and decided, so that nobody can change it unnoticed.", no_args_is_help=True)
app.add_typer(audit, name="audit")

SiteFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="SITE.toml", help="The site's file; see node/site.example.toml.", show_default=False)
]
Level: TypeAlias = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="Least level that is logged.")
]


@app.command(epilog="Exit code: 0 ended when asked to; 2 a mistake; 3 no member any more; 143, 130 by a second signal.")
def run(
    site: SiteFile,
    log_level: Level = "info",
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log one JSON object a line.")] = False,
) -> None:
    """Be the daemon, until SIGTERM or Ctrl-C; log to stderr."""
    from gossipfl_node.config import load_site
    from gossipfl_node.daemon import run_site
    from gossipfl_node.logs import start_logging

    spec = load_site(site)
    start_logging(log_level, as_json=json_logs)
    raise typer.Exit(run_site(spec))


@app.command(epilog="Exit code: 0 nothing found; 2 a mistake, with one line on stderr for each.")
def check(
    site: SiteFile,
    broker: Annotated[
        bool, typer.Option("--broker/--no-broker", help="Log in at the broker too, or try to listen.")
    ] = True,
) -> None:
    """Find every mistake before the start; nothing is changed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from gossipfl_node.check import check_site

    findings = check_site(site, broker=broker)
    for line in findings.mistakes:
        typer.echo(f"gossipfl-node: error: {line}", err=True)
    if findings.mistakes:
        raise typer.Exit(EXIT_USAGE)
    typer.echo(findings.summary)


@app.command(epilog="Exit code: 0 it runs; 1 it does not.")
def status(
    site: Annotated[Path | None, typer.Argument(metavar="[SITE.toml]", help="The site's file.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="The daemon's state folder, instead of the file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Ask the daemon that runs on this machine how it is."""
    from gossipfl_node.config import load_state_folder
    from gossipfl_node.status_socket import ask

    if (site is None) == (folder is None):
        raise ConfigError("give the site's file or --state DIR, one of the two")
    document = ask(folder if folder is not None else load_state_folder(site or Path()))
    if as_json:
        from gossipfl.records import as_json_line

        typer.echo(as_json_line(document))
        return
    from gossipfl_node.show import print_status

    print_status(document)


@app.command(
    epilog="Examples:\n\ngossipfl-node explain harbour site.toml\n\ngossipfl-node explain harbour --state state"
)
def explain(
    peer: Annotated[str, typer.Argument(metavar="PEER", help="A neighbour, by name or peer id.")],
    site: Annotated[Path | None, typer.Argument(metavar="[SITE.toml]", help="The site's file.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="The state folder, instead of the file.")
    ] = None,
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many verdicts and events.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Tell why a neighbour was refused or heard: distances, thresholds, history, evidence."""
    from gossipfl_node.config import load_site
    from gossipfl_node.explain import account_of, print_account

    if (site is None) == (folder is None):
        raise ConfigError("give the site's file or --state DIR, one of the two")
    spec = None if site is None else load_site(site)
    members = {} if spec is None else spec.federation.members
    state = folder if spec is None else spec.site.state
    account = account_of(state or Path(), peer, members=members, last=last)
    if as_json:
        from gossipfl.records import as_json_line

        typer.echo(as_json_line(account.document()))
        return
    print_account(account)


@audit.command(epilog="Exit code: 0 nothing was changed; 1 something was; 2 a mistake.")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="STATE", help="The site's state folder, or a copy of it.")],
    peer_id: Annotated[str, typer.Option("--peer-id", metavar="ID", help="Whose log it is: the site's peer id.")],
    at_least: Annotated[
        int, typer.Option("--at-least", metavar="N", min=0, help="How many entries were seen there before.")
    ] = 0,
) -> None:
    """Find out whether anything in a site's audit log was changed, removed or added by somebody else."""
    from gossipfl_node.audit import describe
    from gossipfl_node.audit import verify as verify_log

    verdict = verify_log(folder, peer_id, at_least=at_least)
    for line in describe(verdict):
        typer.echo(line)
    if not verdict.ok:
        raise typer.Exit(1)


@app.command(epilog="The peer id goes into federation.members of every site's file.")
def key(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The key file, made with mode 0600.")],
    show: Annotated[bool, typer.Option("--show", help="Print the peer id of a key that exists.")] = False,
) -> None:
    """Make a site's key and print its peer id."""
    from gossipfl.identity import Identity

    if show:
        typer.echo(Identity.load(path).peer_id)
        return
    identity = Identity.generate()
    identity.save(path)
    typer.echo(identity.peer_id)


add_version_option(app, "gossipfl-node")


def main() -> NoReturn:
    """Run the ``gossipfl-node`` command."""
    run_app(app, "gossipfl-node")
