"""The formats of settings that are text: host names, paths, URLs and tokens.

Each format is a type that msgspec checks. Its `title` names the format, and `extra` has the words for what is expected and, where
a pattern is not enough, a function that checks and normalizes the text; it raises ValueError.
"""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta


def _format(title: str, pattern: str, expects: str, normalize: Callable[[str], str] = str) -> Meta:
    """Return the constraint that a whole text matches `pattern`."""
    return Meta(pattern=rf"\A(?:{pattern})\Z", title=title, extra={"expects": expects, "normalize": normalize})


def _with_valid_port(url: str) -> str:
    if urlsplit(url).port == 0:  # raises ValueError above 65535, and for an address in brackets that is not IPv6
        raise ValueError("port 0")
    return url


def _base_url(url: str) -> str:
    return _with_valid_port(url).rstrip("/")


_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+"
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_USER = r"(?:[^\s/?#@:]*(?::[^\s/?#@]*)?@)?"
_TLS_FILE = r"ssl_(?:ca_certs|certfile|keyfile)=[^&#\s]+"

Host = Annotated[
    str, _format("address", r"[A-Za-z0-9._:-]+", "a host name or IP address, without scheme, port or brackets")
]
DirectoryPath = Annotated[str, _format("path", r"[^\x00]+", "the path of a directory")]
FilePath = Annotated[str, _format("file", r"[^\x00]+", "the path of a file")]
Token = Annotated[str, _format("token", r"[\x21-\x7e]+", 'the token alone, without "Bearer", spaces or line breaks')]
ReplicaName = Annotated[
    str,
    _format(
        "replica",
        r"[a-z0-9-]{0,58}[0-9]",
        "a name of lowercase letters, digits and hyphens that ends in a number, such as cgm-proxy-0",
    ),
]
ReplicaUrl = Annotated[
    str,
    _format(
        "replica url",
        r"https?://[A-Za-z0-9._:-]*\{replica\}[A-Za-z0-9._:-]*(?:/[A-Za-z0-9._~-]+)*",
        "an http or https URL with {replica} in its host or port, and a plain path",
    ),
]
#: RFC 3986, without what a base URL must not have: user, query, fragment, escapes, empty segments and dot segments.
BaseUrl = Annotated[
    str,
    _format(
        "url",
        rf"https?://{_HOST}(?:/{_SEGMENT})*/?",
        "an http or https URL with a host and a plain path, without user, query, fragment or %-escapes",
        _base_url,
    ),
]
#: The URLs that redis-py reads, without the options that would weaken TLS.
ValkeyUrl = Annotated[
    str,
    _format(
        "valkey url",
        rf"redis://{_USER}{_HOST}(?:/[0-9]{{0,5}})?|unix://{_USER}/[^?#\s]+(?:\?db=[0-9]{{1,5}})?"
        rf"|rediss://{_USER}{_HOST}(?:/[0-9]{{0,5}})?(?:\?{_TLS_FILE}(?:&{_TLS_FILE})*)?",
        "a URL such as redis://USER:PASSWORD@HOST:6379/0, unix://:PASSWORD@/PATH?db=0, or rediss://HOST for TLS, which takes "
        "the options ssl_ca_certs, ssl_certfile and ssl_keyfile; write special characters of the password as %-escapes",
        _with_valid_port,
    ),
]
