"""HTTP/1.1 on the wire: the limits of a message's head, and how aiohttp's server must be made for the relay."""

import logging
from typing import Any, Final

#: Longest request or status line (bytes): searches by GET can be long.
LINE: Final = 2**16
#: Longest header field, its name included (bytes): SMART tokens can be long.
FIELD: Final = 2**17
#: Most header fields of a message.
FIELDS: Final = 512

#: Where aiohttp's server says what it could not read.
LOG: Final = logging.getLogger("cgm_proxy.wire")


def _without_content(record: logging.LogRecord) -> bool:
    """Keep the kind of a fault and drop its text: aiohttp quotes the request, and so a patient's name in its URL."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = "%s: %s", (record.getMessage(), kind.__name__ if kind else "unknown")
        record.exc_info = None
    return True


LOG.addFilter(_without_content)

#: `web.Server(handler, **SERVER_OPTIONS)`: raw bodies (not inflated), long heads, a handler that is cancelled when its
#: client leaves (what must finish is for the handler to shield), no log of URLs, and little patience for a body that
#: nobody reads (seconds).
SERVER_OPTIONS: Final[dict[str, Any]] = {
    "auto_decompress": False,
    "handler_cancellation": True,
    "access_log": None,
    "logger": LOG,
    "lingering_time": 2.0,
    "max_line_size": LINE,
    "max_field_size": FIELD,
    "max_headers": FIELDS,
}
