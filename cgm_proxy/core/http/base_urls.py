"""The two base URLs of the FHIR server: the public one that clients use, and the upstream's own.

`BaseUrls` is the only place that maps one to the other: request targets on the way in, links on the way out, and absolute
references that mean this server. A URL matches a base whatever the case of its scheme and host, with its default port or
without it (RFC 3986, 6.2.2 and 6.2.3), and only up to a whole path segment: `http://up/fhir` is no base of
`http://up/fhirx`, of `http://up.example/fhir` or of `http://up@evil.example/fhir`.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

#: Longest text before a link that `BaseUrls.link_pattern` reads: key, quotes, white space and a relation's name (bytes).
_LINK_CONTEXT: Final = 160


@dataclass(frozen=True)
class BaseUrl:
    """The base URL of a FHIR server, without a slash at its end."""

    url: str

    @cached_property
    def scheme(self) -> str:
        """`http` or `https`."""
        return urlsplit(self.url).scheme.lower()

    @cached_property
    def authority(self) -> str:
        """The host, with the port if the URL has one, in lower case and without credentials."""
        return urlsplit(self.url).netloc.rpartition("@")[2].lower()

    @cached_property
    def port(self) -> int:
        """The port; the scheme's default where the URL has none."""
        return urlsplit(self.url).port or _DEFAULT_PORTS[self.scheme]

    @cached_property
    def path(self) -> str:
        """The path: empty, or with a slash at its start and none at its end."""
        return urlsplit(self.url).path.rstrip("/")

    @cached_property
    def origin(self) -> str:
        """Scheme and authority, as the URL has them."""
        return f"{self.scheme}://{self.authority}"

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """All spellings of the origin in lower case, the longest first: a default port may be written or left out."""
        if self.port != _DEFAULT_PORTS[self.scheme]:
            return (self.origin,)
        without_port = self.origin.removesuffix(f":{self.port}")
        return f"{without_port}:{self.port}", without_port

    @cached_property
    def origin_pattern(self) -> str:
        """A regular expression for the origin in any spelling, up to its end."""
        return f"(?i:{'|'.join(map(re.escape, self.origins))})" + r"(?=[/?#]|\Z)"


@dataclass(frozen=True)
class BaseUrls:
    """The public base and the upstream's, and what maps one to the other."""

    public: BaseUrl
    upstream: BaseUrl

    @classmethod
    def of(cls, public_url: str, upstream_url: str) -> "BaseUrls":
        """Parse the two URLs; slashes at their ends do not count."""
        return cls(BaseUrl(public_url.rstrip("/")), BaseUrl(upstream_url.rstrip("/")))

    @cached_property
    def differ(self) -> bool:
        """Whether links need rewriting at all."""
        return (self.public.origins, self.public.path) != (self.upstream.origins, self.upstream.path)

    def upstream_target(self, target: str) -> str:
        """Return the upstream's request target for a client's: origin-form, absolute-form or `*` (RFC 9112, 3.2).

        The public base's path becomes the upstream's. Nothing is decoded, and a path outside the public base stays.
        """
        if not target.startswith("/"):
            target = _origin_form(target)
        if self.public.path == self.upstream.path:
            return target
        return _move(target, self.public.path, self.upstream.path)

    def localize(self, reference: str) -> str:
        """Return a reference below one of the two bases relative to it, and any other as it is."""
        match = self._below_a_base.match(reference)
        return reference[match.end() :] if match else reference

    @cached_property
    def _below_a_base(self) -> re.Pattern[str]:
        longest_path_first = sorted((self.public, self.upstream), key=lambda base: len(base.path), reverse=True)
        return re.compile("|".join(f"{base.origin_pattern}{re.escape(base.path)}/" for base in longest_path_first))

    def public_location(self, location: bytes) -> bytes:
        """Return the public form of the URL in a Location or Content-Location field.

        The upstream's origin becomes the public one wherever the path leads, because other paths pass through as well.
        """
        text = location.decode("latin-1")
        if match := self._upstream_origin.match(text):
            public = self.public.origin + self._public_path(text[match.end() :])
        elif text.startswith("/") and not text.startswith("//"):
            public = self._public_path(text)
        else:
            return location
        return public.encode("latin-1")

    def public_url(self, url: str) -> str:
        """Return the public form of the upstream's base or of a URL below it, and any other URL as it is."""
        match = self._upstream_origin.match(url)
        return _move(url, match[0] + self.upstream.path, self.public.url) if match else url

    @cached_property
    def _upstream_origin(self) -> re.Pattern[str]:
        return re.compile(self.upstream.origin_pattern)

    def _public_path(self, path: str) -> str:
        return _move(path, self.upstream.path, self.public.path)

    @cached_property
    def link_mark(self) -> bytes:
        """Bytes that every link to the upstream in a body contains, however its slashes are escaped: host and port."""
        return self.upstream.origins[-1].partition("://")[2].encode()

    @cached_property
    def link_pattern(self) -> re.Pattern[bytes]:
        """A pattern that finds the upstream's base where a FHIR body, JSON or XML, links to it; group 1 is what precedes.

        Links are `Bundle.entry.fullUrl`, `entry.response.location`, `Reference.reference` and `Bundle.link.url` (after
        its relation). A canonical `url`, an identifier's system and narrative are content and stay.
        """
        origins = b"|".join(re.escape(origin.encode()) for origin in self.upstream.origins)
        base = (b"(?:" + origins + b")" + re.escape(self.upstream.path.encode())).replace(b"/", rb"\\?/")
        json = rb'"(?:fullUrl|location|reference)"\s{0,8}:\s{0,8}"'
        link = rb'"relation"\s{0,8}:\s{0,8}"[\w-]{0,40}"\s{0,8},\s{0,24}"url"\s{0,8}:\s{0,8}"'
        xml = rb'<(?:fullUrl|location|reference|relation\s{1,8}value="[\w-]{0,40}"\s{0,4}/>\s{0,24}<url)\s{1,8}value="'
        return re.compile(rb"(%b|%b|%b)%b(?=[/?#\"\\])" % (json, link, xml, base))

    @cached_property
    def longest_link(self) -> int:
        """The length of the longest text that `link_pattern` matches (bytes)."""
        return _LINK_CONTEXT + 2 * len(self.upstream.origins[0]) + 2 * len(self.upstream.path)


def _origin_form(target: str) -> str:
    """Return an absolute-form target without its scheme and authority; `*` stays."""
    scheme, separator, rest = target.partition("://")
    if not separator or not scheme.isalpha():
        return target
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[start:]
    return path if path.startswith("/") else "/" + path


def _move(path: str, source: str, destination: str) -> str:
    """Return the path with its leading segments `source` replaced by `destination`; others stay."""
    if not path.startswith(source) or path[len(source) : len(source) + 1] not in {"", "/", "?", "#"}:
        return path
    return destination + path[len(source) :]


class LinkRewriter:
    """Make the links of one FHIR body public while it streams through.

    What could be the first part of a link is held back until the next piece. `found` is whether there was any link.
    """

    def __init__(self, bases: BaseUrls) -> None:
        self._find = bases.link_pattern.finditer
        self._public = bases.public.url.encode()
        self._longest = bases.longest_link
        self._held = b""
        self.found = False

    def feed(self, piece: bytes) -> bytes:
        """Take the next piece and return what can be sent."""
        text = self._held + piece
        ready: list[bytes] = []
        done = 0
        for match in self._find(text):
            ready += (text[done : match.end(1)], self._public)
            done = match.end()
        end = max(len(text) - self._longest, done)
        ready.append(text[done:end])
        self._held = text[end:]
        self.found = self.found or done > 0
        return b"".join(ready)

    def finish(self) -> bytes:
        """Return what was held back, at the end of the body."""
        rest, self._held = self._held, b""
        return rest
