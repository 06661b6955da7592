"""What went wrong with a dial, in words for people."""

from __future__ import annotations

import os

MAX_CAUSES = 8


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error and what is behind it, the last cause last; of several that were gathered the first."""
    causes = [error]
    while len(causes) < MAX_CAUSES:
        last = causes[-1]
        cause = last.exceptions[0] if isinstance(last, BaseExceptionGroup) else last.__cause__
        if cause is None:
            break
        causes.append(cause)
    return causes


def in_words(error: BaseException) -> str:
    """Return an error as a part of a line: what the system says of it, without numbers and addresses."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
