"""Requests to the embedded store, and its responses."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

SYSTEM = "http://example.org/ids"


class Response(NamedTuple):
    status: int
    headers: Any
    text: str

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.text) if self.text else None

    @property
    def diagnostics(self) -> str:
        return self.body["issue"][0]["diagnostics"]


Send = Callable[..., Awaitable[Response]]


def encode(body: dict[str, Any]) -> bytes:
    return msgspec.json.Encoder(decimal_format="number").encode(body)


def observation(value: str = "o", patient: str | None = "Patient/p", **more: Any) -> dict[str, Any]:
    subject = {"subject": {"reference": patient}} if patient else {}
    return {
        "resourceType": "Observation",
        "status": "final",
        "identifier": [{"system": SYSTEM, "value": value}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "99504-3"}]},
        "effectiveDateTime": "2024-05-01T10:00:00Z",
        "valueQuantity": {"value": Decimal("100.0"), "unit": "mg/dl"},
        **subject,
        **more,
    }


def entry(resource: Any, method: str = "POST", url: str = "", full_url: str = "", **request: str) -> dict[str, Any]:
    content: dict[str, Any] = {"fullUrl": full_url} if full_url else {}
    if resource:
        content["resource"] = resource
    return content | {"request": {"method": method, "url": url or resource["resourceType"], **request}}


def bundle(kind: str, *entries: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def if_none_exist(value: str) -> str:
    return f"identifier={SYSTEM}|{value}"
