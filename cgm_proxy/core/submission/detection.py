"""Recognises submissions: POST requests by their path, then documents by their parsed content.

Which requests are looked at at all is decided by the table of `decide` in `server/front_door.py`. Whether one of them is a
submission is never decided on unparsed bytes. A path counts as an endpoint for submissions if any spelling of it does that
some server or gateway could read in it (percent-encoding, `//`, dot segments, `;parameters`), so that no spelling of the base
reaches the upstream as a submission that was not inspected. Content is read as leniently as lenient servers read it (one
object for a list of one, a list of one for an object): what any reading takes for a submission is judged, and then refused
for what is wrong with it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import unquote

from cgm_proxy.core.issues import refuse
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission.dialects import (
    DEFAULT_DIALECT,
    DIALECTS,
    DIALECTS_BY_TAG,
    OPERATION,
    READING_CODES,
    Dialect,
)
from cgm_proxy.core.submission.model import ParsedEntries

#: Where a submission is posted: to the base (a Bundle), to the operation, or to a resource type (the create of one resource).
Endpoint = Literal["base", "operation", "create"]

#: Which endpoint wins if different spellings of a path lead to different ones.
STRICTEST_FIRST: tuple[Endpoint, ...] = ("operation", "create", "base")

#: Resource types whose single creates are inspected with `detection: content`.
CREATED_TYPES = ("Observation", "DiagnosticReport", "Device")

#: How often `path_segments` decodes percent-encoding. Servers decode once, and gateways before them once more.
MAX_DECODINGS = 4

#: What servers and gateways do to a path before they route it; each does some of it, in any order.
CLEANUPS: tuple[Callable[[str], str], ...] = (
    unquote,
    lambda path: re.sub(r";[^/]*", "", path),
    lambda path: re.sub(r"//+", "/", path),
    lambda path: path.replace("\\", "/"),
    lambda path: re.sub(r"[?#].*", "", path, flags=re.DOTALL),
    lambda path: _without_dot_segments(path),
)

#: Longest path of a request (characters, without the query): ids have 64 at most, so no path of FHIR comes near it.
MAX_PATH = 2048

#: Most spellings of one path that are compared, and their characters together, which bound the time that a path can take. No
#: FHIR client sends a path that has more.
MAX_SPELLINGS = 128
MAX_SPELLED = 2**14


def path_segments(raw_path: str) -> list[str]:
    """Return a path's segments after the most thorough clean-up: decoded, without empty and dot segments and parameters."""
    path = _path_of_target(raw_path)
    for _ in range(MAX_DECODINGS):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    segments: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        segment = part.partition(";")[0].strip()
        if segment == "..":
            del segments[-1:]
        elif segment not in {"", "."}:
            segments.append(segment)
    return segments


def spellings(raw_path: str) -> list[str]:
    """Return every path that a server or gateway could make of a raw path: all clean-ups, in all orders.

    The most thorough clean-up is not enough: in `/fhir;%2Fx` and `/fhir/%252e%252e/..` it leads away from the base, while a
    server that decodes later or less ends up at the base.
    Raises `RequestRefused` (400) if there are more than `MAX_SPELLINGS`, or if they are longer than `MAX_SPELLED` together.
    """
    found = [_path_of_target(raw_path)]
    seen = set(found)
    characters = len(found[0])
    for path in found:
        for clean in CLEANUPS:
            if (cleaned := clean(path)) not in seen:
                seen.add(cleaned)
                found.append(cleaned)
                characters += len(cleaned)
        if len(found) > MAX_SPELLINGS or (characters > MAX_SPELLED and len(found) > 1):
            text = "the path can be read in too many ways; send it without escapes, dot segments and repeated slashes"
            raise refuse(400, "path-ambiguous", text)
    return found


def _path_of_target(raw_path: str) -> str:
    """Return the path of a request target, without its query; the absolute form has scheme and authority (RFC 9112, 3.2.2)."""
    path = raw_path.partition("?")[0]
    if path.startswith("/"):
        return path
    return "/" + (path.partition("://")[2].partition("/")[2] if "://" in path else path)


def _without_dot_segments(path: str) -> str:
    """Return a path without dot segments (RFC 3986, 5.2.4) and otherwise unchanged."""
    root, *rest = path.split("/")
    segments: list[str] = []
    for segment in rest:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    return "/".join([root, *segments])


def submission_endpoint(raw_path: str, bases: tuple[str, ...], *, content: bool = False) -> Endpoint | None:
    """Return the endpoint for submissions that a POST to this path reaches; None if its body need not be inspected.

    `bases` are the paths under which the upstream is reached: the public base's and, if paths outside of it pass through
    as well, the upstream's own. With `content`, the creates of single CGM resources are inspected too.
    """
    suffixes: dict[tuple[str, ...], Endpoint] = {(): "base", (OPERATION,): "operation"}
    if content:
        suffixes |= {(created,): "create" for created in CREATED_TYPES}
    endpoints = {(*path_segments(base), *suffix): endpoint for base in bases for suffix, endpoint in suffixes.items()}
    found = {endpoints.get(tuple(filter(None, map(str.strip, path.split("/"))))) for path in spellings(raw_path)}
    return next((endpoint for endpoint in STRICTEST_FIRST if endpoint in found), None)


def tagged_dialect(bundle: JsonObject) -> Dialect | None:
    """Return the dialect whose submission tag a Bundle has; None for other documents."""
    if bundle.get("resourceType") != "Bundle":
        return None
    for tag in _objects_at(bundle, "meta", "tag"):
        system, code = tag.get("system"), tag.get("code")
        if isinstance(system, str) and isinstance(code, str) and (dialect := DIALECTS_BY_TAG.get((system, code))):
            return dialect
    return None


def operation_dialect(bundle: JsonObject) -> Dialect:
    """Return the dialect of a Bundle that was sent to the operation.

    The ballot and STU1 share the operation and the canonical URLs. A code system that only the ballot uses marks its Bundles.
    """
    dialects = {dialect.own_code_system: dialect for dialect in DIALECTS if dialect.own_code_system}
    for coding in _objects_at(bundle, "entry", "resource", "code", "coding"):
        if isinstance(system := coding.get("system"), str) and system in dialects:
            return dialects[system]
    return DEFAULT_DIALECT


def content_dialect(document: JsonObject) -> Dialect | None:
    """Return the dialect of an untagged Bundle or single resource with CGM data, by its claimed profiles and codes."""
    is_bundle = document.get("resourceType") == "Bundle"
    for resource in _objects_at(document, "entry", "resource") if is_bundle else [document]:
        if dialect := _claimed_dialect(resource) or _coded_dialect(resource):
            return operation_dialect(document) if dialect.uses_operation else dialect
    return None


def _claimed_dialect(resource: JsonObject) -> Dialect | None:
    for meta in _objects_at(resource, "meta"):
        claims = meta.get("profile")
        for url in claims if isinstance(claims, list) else [claims]:
            for dialect in DIALECTS:
                if isinstance(url, str) and url.startswith(f"{dialect.canonical_base}/StructureDefinition/"):
                    return dialect
    return None


def _coded_dialect(resource: JsonObject) -> Dialect | None:
    for coding in _objects_at(resource, "code", "coding"):
        system, code = coding.get("system"), coding.get("code")
        if not isinstance(system, str) or not isinstance(code, str):
            continue
        if (system, code) in READING_CODES:
            return DEFAULT_DIALECT
        for dialect in DIALECTS:
            if system.startswith(f"{dialect.canonical_base}/CodeSystem/cgm"):
                return dialect
    return None


def _objects_at(value: Any, *names: str) -> Iterator[JsonObject]:
    """Yield the objects at a path of member names, whether a step has one object or a list of them."""
    if isinstance(value, ParsedEntries):
        value = value.outlines
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _objects_at(item, *names)
    elif isinstance(value, dict):
        if names:
            yield from _objects_at(value.get(names[0]), *names[1:])
        else:
            yield value
