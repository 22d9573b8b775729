"""Decide what a request is, from its method and path and then from its parsed body; never from unparsed bytes.

The path is compared in a form at least as aggressive as any server's own clean-up (percent-encoding, `//`, dot segments,
`;parameters`), so that no spelling of the base reaches the upstream as a submission that was not looked at.
"""

from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from cgm_proxy.core.dialects import BY_ID, BY_TAG, DIALECTS, OPERATION, READING_CODES, Dialect
from cgm_proxy.core.errors import Json

Target = Literal["base", "operation", "create"]

#: Resource types that `detection: content` looks at when they are created one by one.
CREATED_TYPES = ("Observation", "DiagnosticReport", "Device")

#: How often a path is percent-decoded before it is compared; servers decode once, gateways before them again.
MAX_DECODINGS = 4


def segments(raw_path: str) -> list[str]:
    """Give the path's segments as a server would clean them up at most: decoded, no `//`, dots or `;parameters`."""
    path = (
        urlsplit(raw_path).path if "://" in raw_path.partition("?")[0] else raw_path.partition("?")[0].partition("#")[0]
    )
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


def target(method: str, raw_path: str, bases: tuple[str, ...], *, content: bool = False) -> Target | None:
    """Tell which kind of submission a request could be, or None: its body need not be looked at.

    `bases` are the paths under which the upstream can be reached: the public base's, and the upstream's own where paths
    outside the public base pass too. With `content`, creates of single CGM resources are targets as well.
    """
    if method.upper() != "POST":
        return None
    path = segments(raw_path)
    for base in bases:
        root = segments(base)
        if path[: len(root)] != root:
            continue
        match path[len(root) :]:
            case []:
                return "base"
            case [name] if name == OPERATION:
                return "operation"
            case [name] if content and name in CREATED_TYPES:
                return "create"
    return None


def bundle_dialect(bundle: Json) -> Dialect | None:
    """Give the dialect whose submission tag the Bundle carries."""
    if bundle.get("resourceType") != "Bundle":
        return None
    meta = bundle.get("meta")
    for tag in _objects(meta.get("tag") if isinstance(meta, dict) else None):
        system, code = tag.get("system"), tag.get("code")
        if isinstance(system, str) and isinstance(code, str) and (found := BY_TAG.get((system, code))):
            return found
    return None


def operation_dialect(bundle: Json) -> Dialect:
    """Tell the ballot's submissions from STU1's, which share the operation and the canonicals, by the ballot's own codes."""
    own = {dialect.own_codes: dialect for dialect in DIALECTS if dialect.own_codes}
    for resource in _resources(bundle):
        for coding in _codings(resource):
            if isinstance(system := coding.get("system"), str) and system in own:
                return own[system]
    return BY_ID["1.0.0"]


def content_dialect(document: Json) -> Dialect | None:
    """Give the dialect of an untagged Bundle or single resource that holds CGM data, by its codes and claimed profiles."""
    resources = [document] if document.get("resourceType") != "Bundle" else list(_resources(document))
    for resource in resources:
        if found := _claimed_dialect(resource) or _coded_dialect(resource):
            return operation_dialect(document) if found.operation else found
    return None


def _claimed_dialect(resource: Json) -> Dialect | None:
    meta = resource.get("meta")
    profiles = meta.get("profile") if isinstance(meta, dict) else None
    for url in profiles if isinstance(profiles, list) else ():
        for dialect in DIALECTS:
            if isinstance(url, str) and url.startswith(f"{dialect.base}/StructureDefinition/"):
                return dialect
    return None


def _coded_dialect(resource: Json) -> Dialect | None:
    for coding in _codings(resource):
        system, code = coding.get("system"), coding.get("code")
        if not isinstance(system, str) or not isinstance(code, str):
            continue
        if (system, code) in READING_CODES:
            return BY_ID["1.0.0"]
        for dialect in DIALECTS:
            if system.startswith(f"{dialect.base}/CodeSystem/cgm"):
                return dialect
    return None


def _resources(bundle: Json) -> Iterator[Json]:
    for entry in _objects(bundle.get("entry")):
        if isinstance(resource := entry.get("resource"), dict):
            yield resource


def _codings(resource: Json) -> Iterator[Json]:
    code = resource.get("code")
    yield from _objects(code.get("coding") if isinstance(code, dict) else None)


def _objects(value: Any) -> Iterator[Json]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))
