"""What happens on a device, as log events with fields, through Python's own logging.

    events = event_log("update")
    events.info("target_installed", version=7, seconds=0.4)

becomes the record "target_installed version=7 seconds=0.4" of the logger "quantfleet.update", whose attribute
`event_fields` holds the fields. An application that embeds the agent decides what to do with it, as with any other
library's logs; structlog would be 15 MB of resident memory on every device (it imports rich).
"""

import json
import logging
import sys
import time
from typing import Any

_ROOT = "quantfleet"
_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/+")


class EventLog:
    """Writes events to one logger."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """Log what only a developer wants to know."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what the owner may want to know."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what went wrong and is dealt with."""
        self._log(logging.WARNING, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log what should not happen, with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, event, fields, is_traced=True)

    def _log(self, level: int, event: str, fields: dict[str, object], *, is_traced: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"event": event, "event_fields": fields}
            self._logger.log(level, "%s", _line(event, fields), exc_info=is_traced, extra=extra)


def event_log(name: str) -> EventLog:
    """Return the log of one part of the agent."""
    return EventLog(logging.getLogger(f"{_ROOT}.{name}"))


def log_to_stderr(level: str = "info", *, is_json: bool = False) -> None:
    """Write this process's events to stderr, one line each; for a command, not for an application that embeds.

    Args:
        level: Least severe that is written: "debug", "info", "warning" or "error".
        is_json: Whether lines are JSON objects.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if is_json else _PlainFormatter())
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "timestamp": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", record.getMessage()),
            **getattr(record, "event_fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _line(event: str, fields: dict[str, object]) -> str:
    return " ".join([event, *(f"{name}={_shown(value)}" for name, value in fields.items())])


def _shown(value: object) -> str:
    """Return a value on one line, quoted where it is more than a word."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and set(text) <= _PLAIN else json.dumps(text, ensure_ascii=False)
