"""How a command line of this project ends: exit codes, and one line on stderr for a person's mistake."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from gossipfl import __version__
from gossipfl.errors import GossipflError, TransportUnavailable, UsageError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}

# typer carries its own copy of click in some versions and imports click in others; both name the base class so.
_ClickException: type[BaseException] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def add_version_option(app: typer.Typer, name: str) -> None:
    """Give a program's ``app`` the option ``--version``."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(f"{name} {__version__}")
            raise typer.Exit

    # Not in the annotation: typer reads those as text, where a local function has no name.
    option = typer.Option(False, "--version", callback=show, is_eager=True, help="Show the version and exit.")

    @app.callback()
    def options(version: bool = option) -> None:
        pass


def run_app(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a typer ``app`` under the program's ``name`` and exit.

    A mistake in usage, settings or input is one line and exit code 2, another expected failure one line and
    1, an interrupt 130. Anything else is a defect of the program and keeps its traceback.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except (UsageError, TransportUnavailable) as error:
        _complain(name, str(error))
        sys.exit(EXIT_USAGE)
    except GossipflError as error:
        _complain(name, str(error))
        sys.exit(EXIT_FAILURE)
    except _ClickException as error:
        # Without arguments, the help has been shown and the error has no text of its own.
        if str(getattr(error, "message", "")):
            _complain(name, _usage_line(error))
        sys.exit(EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. Nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _complain(name, f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room and run it again")
        sys.exit(EXIT_FAILURE)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(name: str, message: str) -> None:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201


def _usage_line(error: Any) -> str:
    message = str(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see {context.command_path} --help" if context else message
