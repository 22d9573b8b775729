"""HTTP/1.1 limits of a message's head, and the options of aiohttp's server that the relay needs."""

import logging
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

#: Longest request or status line (bytes): the target of a search by GET can be long.
MAX_LINE: Final = 2**16
#: Longest header field, including its name (bytes): SMART tokens can be long.
MAX_FIELD: Final = 2**17
#: Most header fields of one message.
MAX_FIELDS: Final = 512

#: Faults that only a client can cause: a message that is not HTTP, or a connection that ends early.
CLIENT_FAULTS: Final = (BadHttpMessage, ConnectionResetError, web.RequestPayloadError)

#: The logger of aiohttp's server.
LOG: Final = logging.getLogger("cgm_proxy.relay.http_options")


def _drop_content(record: logging.LogRecord) -> bool:
    """Reduce a record to the kind of its fault, because the text quotes the request (patients' names) and the client's address.

    A fault of a client is logged as INFO: it is no error of the server.
    """
    if not record.exc_info:
        return True
    kind = record.exc_info[0]
    event = str(record.msg).removesuffix(" from %s")
    record.msg, record.args, record.exc_info = "%s: %s", (event, kind.__name__ if kind else "unknown"), None
    if kind and issubclass(kind, CLIENT_FAULTS) and record.levelno > logging.INFO:
        record.levelno, record.levelname = logging.INFO, "INFO"
    return LOG.isEnabledFor(record.levelno)


LOG.addFilter(_drop_content)

#: Arguments of `web.Server`:
#: - bodies stay compressed, and heads may be long;
#: - the handler is cancelled when its client disconnects (it shields what must finish);
#: - requests are not logged, because their URLs can name patients;
#: - a body that nobody reads is awaited for 2 seconds only.
SERVER_OPTIONS: Final[dict[str, Any]] = {
    "auto_decompress": False,
    "handler_cancellation": True,
    "access_log": None,
    "logger": LOG,
    "lingering_time": 2.0,
    "max_line_size": MAX_LINE,
    "max_field_size": MAX_FIELD,
    "max_headers": MAX_FIELDS,
}
