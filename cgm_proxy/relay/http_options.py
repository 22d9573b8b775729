"""HTTP/1.1 on the wire: the limits of a message's head, and how aiohttp's server must be made for the relay."""

import logging
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

#: Longest request or status line (bytes): searches by GET can be long.
LINE: Final = 2**16
#: Longest header field, its name included (bytes): SMART tokens can be long.
FIELD: Final = 2**17
#: Most header fields of a message.
FIELDS: Final = 512

#: What only a client can cause: a message that is no HTTP, or a connection that ends early.
CLIENTS: Final = (BadHttpMessage, ConnectionResetError, web.RequestPayloadError)

#: Where aiohttp's server says what it could not read.
LOG: Final = logging.getLogger("cgm_proxy.relay.http_options")


def _without_content(record: logging.LogRecord) -> bool:
    """Keep the kind of a fault and drop its text, which quotes the request and so a patient's name, and the client's address.

    What a client caused is no error of the server.
    """
    if not record.exc_info:
        return True
    kind = record.exc_info[0]
    event = str(record.msg).removesuffix(" from %s")
    record.msg, record.args, record.exc_info = "%s: %s", (event, kind.__name__ if kind else "unknown"), None
    if kind and issubclass(kind, CLIENTS) and record.levelno > logging.INFO:
        record.levelno, record.levelname = logging.INFO, "INFO"
    return LOG.isEnabledFor(record.levelno)


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
