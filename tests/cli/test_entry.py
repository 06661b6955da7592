"""How a command line ends."""

from __future__ import annotations

import errno
import os

import pytest
import typer

from gossipfl.entry import run_app
from gossipfl.errors import GossipflError, TransportUnavailable, UsageError


def end_with(error: BaseException) -> int:
    """Return the exit code of a program whose only command raises ``error``."""
    app = typer.Typer()

    @app.command()
    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_app(app, "prog", [])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("mend\nthis"), 2),
        (TransportUnavailable("mend this"), 2),
        (GossipflError("mend this"), 1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mend this"), 1),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "mend this"), 1),
    ],
)
def test_an_expected_failure_is_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    assert end_with(error) == code
    told = capsys.readouterr().err
    assert told.startswith("prog: error: ")
    assert "mend this" in told
    assert told.count("\n") == 1


def test_an_interrupt_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_a_defect_keeps_its_traceback() -> None:
    app = typer.Typer()

    @app.command()
    def work() -> None:
        raise OSError(errno.ENOENT, "a file that should be there")

    with pytest.raises(FileNotFoundError):
        run_app(app, "prog", [])
