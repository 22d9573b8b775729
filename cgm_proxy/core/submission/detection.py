"""Decide what a request is, from its method and path and then from its parsed body; never from unparsed bytes.

The path is compared in every form that some server's clean-up could give it (percent-encoding, `//`, dot segments,
`;parameters`), so that no spelling of the base reaches the upstream as a submission that was not looked at. Content is
read leniently, as lenient servers read it (one object for a list of one, a list of one for an object): what is a
submission by any reading is judged, and then refused for what it is not.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import unquote

from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import (
    DIALECTS,
    DIALECTS_BY_ID,
    DIALECTS_BY_TAG,
    OPERATION,
    READING_CODES,
    Dialect,
)
from cgm_proxy.core.submission.model import ParsedEntries

Endpoint = Literal["base", "operation", "create"]

#: Which target a path is taken for that could be several.
STRICTEST: tuple[Endpoint, ...] = ("operation", "create", "base")

#: Resource types that `detection: content` looks at when they are created one by one.
CREATED_TYPES = ("Observation", "DiagnosticReport", "Device")

#: How often a path is percent-decoded before it is compared; servers decode once, gateways before them again.
MAX_DECODINGS = 4

#: What servers and gateways do to a path before they look at it, each some of it, in any order.
CLEANUPS: tuple[Callable[[str], str], ...] = (
    unquote,
    lambda path: re.sub(r";[^/]*", "", path),
    lambda path: re.sub(r"//+", "/", path),
    lambda path: path.replace("\\", "/"),
    lambda path: re.sub(r"[?#].*", "", path, flags=re.DOTALL),
    lambda path: _without_dots(path),
)

#: Ways to read one path that are compared; what can be read in more ways is no path of a FHIR client.
MAX_SPELLINGS = 128


def path_segments(raw_path: str) -> list[str]:
    """Give the path's segments as a server would clean them up at most: decoded, no `//`, dots or `;parameters`."""
    path = _path(raw_path)
    for _ in range(MAX_DECODINGS):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    cleaned: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        name = part.partition(";")[0].strip()
        if name == "..":
            del cleaned[-1:]
        elif name not in {"", "."}:
            cleaned.append(name)
    return cleaned


def spellings(raw_path: str) -> list[str]:
    """Give every path that some server or gateway could take a raw one for: all clean-ups, in all orders.

    One reading is not enough: in `/fhir;%2Fx` and `/fhir/%252e%252e/..` the strictest one leads away from the base, to
    which a server that decodes later or less is led. Raises `RequestRefused` (400) for what can be read in too many ways.
    """
    found = [_path(raw_path)]
    known = set(found)
    for path in found:
        for clean in CLEANUPS:
            if (cleaned := clean(path)) not in known:
                known.add(cleaned)
                found.append(cleaned)
        if len(found) > MAX_SPELLINGS:
            text = "the path can be read in too many ways; send it without escapes, dots and doubled slashes"
            raise refuse(400, "path-ambiguous", text)
    return found


def _path(raw_path: str) -> str:
    """Cut off the query and, from an absolute-form target (RFC 9112, 3.2.2), scheme and authority."""
    path = raw_path.partition("?")[0]
    if path.startswith("/"):
        return path
    return "/" + (path.partition("://")[2].partition("/")[2] if "://" in path else path)


def _without_dots(path: str) -> str:
    """Remove dot segments, and nothing else (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    for name in path.split("/"):
        if name == "..":
            kept = kept[:1] + kept[1:-1]
        elif name != ".":
            kept.append(name)
    return "/".join(kept)


def submission_endpoint(
    method: str, raw_path: str, bases: tuple[str, ...], *, content: bool = False
) -> Endpoint | None:
    """Tell which kind of submission a request could be, or None: its body need not be looked at.

    `bases` are the paths under which the upstream can be reached: the public base's, and the upstream's own where paths
    outside the public base pass too. With `content`, creates of single CGM resources are targets as well.
    """
    if method.upper() != "POST":
        return None
    names: dict[tuple[str, ...], Endpoint] = {(): "base", (OPERATION,): "operation"}
    if content:
        names |= {(kind,): "create" for kind in CREATED_TYPES}
    targets = {(*path_segments(base), *name): found for base in bases for name, found in names.items()}
    found = {targets.get(tuple(filter(None, map(str.strip, path.split("/"))))) for path in spellings(raw_path)}
    return next((kind for kind in STRICTEST if kind in found), None)


def tagged_dialect(bundle: JsonObject) -> Dialect | None:
    """Give the dialect whose submission tag the Bundle carries."""
    if bundle.get("resourceType") != "Bundle":
        return None
    for tag in _within(bundle, "meta", "tag"):
        system, code = tag.get("system"), tag.get("code")
        if isinstance(system, str) and isinstance(code, str) and (found := DIALECTS_BY_TAG.get((system, code))):
            return found
    return None


def operation_dialect(bundle: JsonObject) -> Dialect:
    """Tell the ballot's submissions from STU1's, which share the operation and the canonicals, by the ballot's own codes."""
    own = {dialect.own_code_system: dialect for dialect in DIALECTS if dialect.own_code_system}
    for resource in _resources(bundle):
        for coding in _codings(resource):
            if isinstance(system := coding.get("system"), str) and system in own:
                return own[system]
    return DIALECTS_BY_ID["1.0.0"]


def content_dialect(document: JsonObject) -> Dialect | None:
    """Give the dialect of an untagged Bundle or single resource that holds CGM data, by its codes and claimed profiles."""
    resources = [document] if document.get("resourceType") != "Bundle" else list(_resources(document))
    for resource in resources:
        if found := _claimed_dialect(resource) or _coded_dialect(resource):
            return operation_dialect(document) if found.uses_operation else found
    return None


def _claimed_dialect(resource: JsonObject) -> Dialect | None:
    claims = [meta.get("profile") for meta in _within(resource, "meta")]
    for url in (url for claim in claims for url in (claim if isinstance(claim, list) else [claim])):
        for dialect in DIALECTS:
            if isinstance(url, str) and url.startswith(f"{dialect.canonical_base}/StructureDefinition/"):
                return dialect
    return None


def _coded_dialect(resource: JsonObject) -> Dialect | None:
    for coding in _codings(resource):
        system, code = coding.get("system"), coding.get("code")
        if not isinstance(system, str) or not isinstance(code, str):
            continue
        if (system, code) in READING_CODES:
            return DIALECTS_BY_ID["1.0.0"]
        for dialect in DIALECTS:
            if system.startswith(f"{dialect.canonical_base}/CodeSystem/cgm"):
                return dialect
    return None


def _resources(bundle: JsonObject) -> Iterator[JsonObject]:
    return _within(bundle, "entry", "resource")


def _codings(resource: JsonObject) -> Iterator[JsonObject]:
    return _within(resource, "code", "coding")


def _within(value: Any, *names: str) -> Iterator[JsonObject]:
    """Give the objects at a path, whether each step holds one or a list of them."""
    if isinstance(value, ParsedEntries):
        value = value.outlines
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _within(item, *names)
    elif isinstance(value, dict):
        if not names:
            yield value
        else:
            yield from _within(value.get(names[0]), *names[1:])
