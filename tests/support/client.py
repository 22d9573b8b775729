"""A submitter's client for the tests: plain HTTP, with responses as values."""

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
class Response:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        """The resource in the response, whether JSON or XML; its decimals keep their digits."""
        if self.data.lstrip().startswith(b"<"):
            return FHIR_XML.to_json(self.data)
        return json.loads(self.data, parse_float=Decimal)

    @property
    def pretty(self) -> str:
        """The response's text with one space after each colon, however the server formats it."""
        return self.data.decode().replace('": ', '":').replace('":', '": ')

    @property
    def rules(self) -> list[str]:
        """The ids of the rules that the OperationOutcome names."""
        return [coding["code"] for issue in self.body["issue"] for coding in issue.get("details", {}).get("coding", [])]


@dataclass(frozen=True)
class Client:
    base: str

    def request(self, method: str, path: str = "", body: bytes | None = None, **headers: str) -> Response:
        url = f"{self.base}/{path}" if path else self.base
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data=body, method=method, headers=fields)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return Response(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Response(error.code, error.headers, error.read())

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, **headers)

    def put(self, path: str, resource: Any) -> Response:
        return self.request("PUT", path, encode(resource), Content_Type=JSON)

    def post(self, path: str, resource: Any, **headers: str) -> Response:
        body = resource if isinstance(resource, bytes) else encode(resource)
        return self.request("POST", path, body, **{"Content_Type": JSON, **headers})

    def submit(self, dialect: str, bundle: Any, **headers: str) -> Response:
        """Post a submission in the way of its dialect."""
        body = bundle.encode() if isinstance(bundle, str) else bundle
        return self.post(self.submission_path(dialect), body, **headers)

    def submit_xml(self, dialect: str, bundle: Any) -> Response:
        return self.request("POST", self.submission_path(dialect), FHIR_XML.to_xml(bundle), Content_Type=XML)

    def total(self, search: str) -> int:
        return self.get(f"{search}&_summary=count", Cache_Control="no-cache").body["total"]

    @staticmethod
    def submission_path(dialect: str) -> str:
        return "" if dialect in {"argo", "0.1.0"} else "$submit-cgm-bundle"

    @staticmethod
    def text(value: Any) -> str:
        return encode(value).decode()
