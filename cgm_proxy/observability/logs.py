"""Structured logs: each line is a JSON object. Lines carry the id of a request, but never patient data or URLs."""

import json
import logging
import sys
from datetime import UTC, datetime
from traceback import extract_tb
from typing import Any

LOGGER = logging.getLogger("cgm_proxy")


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object of time (UTC), level, event and the fields that were passed with it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON.

        Of an exception only the type and the trace are logged, because its text may quote a body. For the same reason
        only the first line of a message is logged: asyncio appends the failed task with its exception.
        """
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().partition("\n")[0],
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            line["trace"] = [f"{frame.name}:{frame.lineno}" for frame in extract_tb(record.exc_info[2])[-8:]]
        return json.dumps(line)


def start(level: str) -> None:
    """Write log lines of this level and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(level.upper())


def log(event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any) -> None:
    """Log an event. Fields hold counts, codes and ids of requests, never content of a submission."""
    LOGGER.log(level, event, exc_info=exc_info, extra={"fields": fields})
