"""Structured logs: one JSON object a line, with the request's id and never with patient data or URLs."""

import json
import logging
import sys
from datetime import UTC, datetime
from traceback import extract_tb
from typing import Any

LOGGER = logging.getLogger("cgm_proxy")


class JsonLines(logging.Formatter):
    """Write a record as one JSON object: time (UTC), level, event and the fields given with it."""

    def format(self, record: logging.LogRecord) -> str:
        """Serialise a record; of an exception only its type and way are told, since its text may quote a body.

        So may all but the first line of a message: asyncio shows there the task that failed, with its exception.
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
    """Write log lines of at least this level to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(level.upper())


def log(event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any) -> None:
    """Write one line; fields hold counts, codes and ids of requests, never what a submission says."""
    LOGGER.log(level, event, exc_info=exc_info, extra={"fields": fields})
