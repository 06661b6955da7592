"""What the daemon writes to stderr: one line per thing, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from gossipfl.records import as_json_line

OWN_LOGGERS = ("gossipfl", "gossipfl_node")


class Lines(logging.Formatter):
    """``2026-01-31T12:00:00Z INFO     text``; a traceback follows where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = super().format(record)
        return f"{_time(record)} {record.levelname:<8} {text}"


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``message``, and for the agent's events their own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if hasattr(record, "event"):
            entry |= {"event": record.event, **getattr(record, "fields", {})}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return as_json_line(entry)


def start_logging(level: str, *, as_json: bool) -> None:
    """Write this program's log to stderr from ``level`` on; of the libraries below it, warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
