"""A submitter's client for the tests: plain HTTP, answers as values."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from support.r4 import FHIR_XML

from cgm_proxy.core.codec.json_body import encode

JSON = "application/fhir+json"
XML = "application/fhir+xml"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        """The resource that was answered, of either format; its decimals keep their digits."""
        if self.data.lstrip().startswith(b"<"):
            return FHIR_XML.to_json(self.data)
        return json.loads(self.data, parse_float=Decimal)

    @property
    def pretty(self) -> str:
        """The answer's text with one space after each colon, whatever the server writes."""
        return self.data.decode().replace('": ', '":').replace('":', '": ')

    @property
    def rules(self) -> list[str]:
        """The rules that the OperationOutcome names."""
        return [coding["code"] for issue in self.body["issue"] for coding in issue.get("details", {}).get("coding", [])]


@dataclass(frozen=True)
class Client:
    base: str

    def request(self, method: str, path: str = "", body: bytes | None = None, **headers: str) -> Answer:
        url = f"{self.base}/{path}" if path else self.base
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(url, data=body, method=method, headers=fields)
        try:
            with urllib.request.urlopen(asked, timeout=300) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def put(self, path: str, resource: Any) -> Answer:
        return self.request("PUT", path, encode(resource), Content_Type=JSON)

    def post(self, path: str, resource: Any, **headers: str) -> Answer:
        body = resource if isinstance(resource, bytes) else encode(resource)
        return self.request("POST", path, body, **{"Content_Type": JSON, **headers})

    def submit(self, dialect: str, bundle: Any, **headers: str) -> Answer:
        """Post a submission as its dialect does."""
        body = bundle.encode() if isinstance(bundle, str) else bundle
        return self.post(self.where(dialect), body, **headers)

    def submit_xml(self, dialect: str, bundle: Any) -> Answer:
        return self.request("POST", self.where(dialect), FHIR_XML.to_xml(bundle), Content_Type=XML)

    def total(self, search: str) -> int:
        return self.get(f"{search}&_summary=count", Cache_Control="no-cache").body["total"]

    @staticmethod
    def where(dialect: str) -> str:
        return "" if dialect in {"argo", "0.1.0"} else "$submit-cgm-bundle"

    @staticmethod
    def text(value: Any) -> str:
        return encode(value).decode()
