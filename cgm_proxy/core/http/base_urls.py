"""Where the public base and the upstream's base meet: targets on the way in, links on the way out.

A base matches as a whole URL or up to a whole path segment, never as a mere prefix of a string: `http://up/fhir` is no
base of `http://up/fhirx` or of `http://up.example/fhir`.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ENDS: Final = (b"", b"/", b"?", b"#")

#: The longest text before a link that is looked at: key, quotes, white space and a relation's name (bytes).
_CONTEXT: Final = 160


@dataclass(frozen=True)
class Base:
    """The base URL of a FHIR server, without a slash at its end."""

    url: str

    @cached_property
    def scheme(self) -> str:
        """Give `http` or `https`."""
        return urlsplit(self.url).scheme.lower()

    @cached_property
    def port(self) -> int:
        """Give the port, also where the URL leaves it out."""
        return urlsplit(self.url).port or _DEFAULT_PORTS[self.scheme]

    @cached_property
    def authority(self) -> str:
        """Give host and port as the URL has them, without credentials."""
        return urlsplit(self.url).netloc.rpartition("@")[2].lower()

    @cached_property
    def path(self) -> str:
        """Give the path: empty, or with a slash at its start and none at its end."""
        return urlsplit(self.url).path.rstrip("/")

    @cached_property
    def origin(self) -> str:
        """Give scheme and authority."""
        return f"{self.scheme}://{self.authority}"

    @cached_property
    def origins(self) -> tuple[bytes, ...]:
        """Give the spellings of the origin: as configured, and with the default port the other way."""
        host = self.authority.removesuffix(f":{self.port}")
        default = self.port == _DEFAULT_PORTS[self.scheme]
        spellings = {self.origin} | (
            {f"{self.scheme}://{host}", f"{self.scheme}://{host}:{self.port}"} if default else set()
        )
        return tuple(spelling.encode() for spelling in sorted(spellings, key=len, reverse=True))


@dataclass(frozen=True)
class Bases:
    """The public base, which submitters use, and the upstream's."""

    public: Base
    upstream: Base

    @classmethod
    def of(cls, public_url: str, upstream_url: str) -> "Bases":
        """Read the two URLs."""
        return cls(Base(public_url.rstrip("/")), Base(upstream_url.rstrip("/")))

    @cached_property
    def differ(self) -> bool:
        """Tell whether links need rewriting at all."""
        return (self.public.origin, self.public.path) != (self.upstream.origin, self.upstream.path)

    def target(self, raw: str) -> str:
        """Give the upstream's request target for a raw one: origin-form, absolute-form or `*` (RFC 9112, 3.2).

        The public base's path becomes the upstream's, nothing is decoded, and a path elsewhere stays as it is.
        """
        if not raw.startswith("/"):
            raw = _origin_form(raw)
        if self.public.path == self.upstream.path:
            return raw
        return _moved(raw, self.public.path, self.upstream.path)

    def link(self, value: bytes) -> bytes:
        """Give the public form of a Location or Content-Location to the upstream's base, or else its origin."""
        for origin in self.upstream.origins:
            if value[: len(origin)].lower() == origin and value[len(origin) : len(origin) + 1] in _ENDS:
                return self.public.origin.encode() + self._path(value[len(origin) :])
        return self._path(value) if value.startswith(b"/") and not value.startswith(b"//") else value

    def _path(self, path: bytes) -> bytes:
        moved = _moved(path.decode("latin-1"), self.upstream.path, self.public.path)
        return moved.encode("latin-1")

    def published(self, url: str) -> str:
        """Give the public form of a URL that is the upstream's base or lies below it; any other stays."""
        for origin in self.upstream.origins:
            moved = _moved(url, origin.decode() + self.upstream.path, self.public.url)
            if moved != url:
                return moved
        return url

    @cached_property
    def upstream_mark(self) -> bytes:
        """Give what stands in every link to the upstream, however its slashes are written: host and port."""
        return self.upstream.origins[-1].partition(b"://")[2]

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """Find the upstream's base where a FHIR body links to it, in JSON and in XML.

        That is `Bundle.entry.fullUrl`, `entry.response.location`, `Reference.reference` and `Bundle.link.url` (after
        its relation); a canonical `url`, an identifier's system and narrative are content and stay.
        """
        origins = b"|".join(re.escape(origin) for origin in self.upstream.origins)
        base = (b"(?:" + origins + b")" + re.escape(self.upstream.path.encode())).replace(b"/", rb"\\?/")
        json = rb'"(?:fullUrl|location|reference)"\s{0,8}:\s{0,8}"'
        link = rb'"relation"\s{0,8}:\s{0,8}"[\w-]{0,40}"\s{0,8},\s{0,24}"url"\s{0,8}:\s{0,8}"'
        xml = rb'<(?:fullUrl|location|reference|relation\s{1,8}value="[\w-]{0,40}"\s{0,4}/>\s{0,24}<url)\s{1,8}value="'
        return re.compile(rb"(%b|%b|%b)%b(?=[/?#\"\\])" % (json, link, xml, base))

    @cached_property
    def longest_link(self) -> int:
        """Give how much text `pattern` looks at, at most (bytes)."""
        return _CONTEXT + 2 * max(map(len, self.upstream.origins)) + 2 * len(self.upstream.path)


def _origin_form(raw: str) -> str:
    """Cut scheme and authority off an absolute-form target; `*` stays."""
    scheme, found, rest = raw.partition("://")
    if not found or not scheme.isalpha():
        return raw
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[start:]
    return path if path.startswith("/") else "/" + path


def _moved(path: str, source: str, destination: str) -> str:
    """Replace the leading segments `source` of a path by `destination`."""
    if not path.startswith(source) or path[len(source) : len(source) + 1] not in {"", "/", "?", "#"}:
        return path
    return destination + path[len(source) :]


class LinkRewriter:
    """Make the links of one FHIR body public while it streams by; what may be half a link waits for the next piece."""

    def __init__(self, bases: Bases) -> None:
        self._find = bases.pattern.finditer
        self._public = bases.public.url.encode()
        self._held = bases.longest_link
        self._rest = b""
        self.found = False

    def feed(self, piece: bytes) -> bytes:
        """Take the next piece and give what is certain."""
        text = self._rest + piece
        given: list[bytes] = []
        done = 0
        for match in self._find(text):
            given += (text[done : match.end(1)], self._public)
            done = match.end()
        certain = max(len(text) - self._held, done)
        given.append(text[done:certain])
        self._rest = text[certain:]
        self.found = self.found or done > 0
        return b"".join(given)

    def finish(self) -> bytes:
        """Give what was held back: nothing follows."""
        rest, self._rest = self._rest, b""
        return rest
