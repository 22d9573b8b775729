"""Observations in XML, and what they are read as."""

from typing import Any

from support.r4 import FHIR_XML

from cgm_proxy.core.codec.xml_schema import FHIR


def observation(inside: str, attributes: str = "") -> str:
    return f'<Observation xmlns="{FHIR}"{attributes}>{inside}</Observation>'


def read(xml: str | bytes) -> dict[str, Any]:
    return FHIR_XML.to_json(xml.encode() if isinstance(xml, str) else xml)


def content(inside: str, attributes: str = "") -> dict[str, Any]:
    """Read an Observation and return its members without the resourceType."""
    found = read(observation(inside, attributes))
    assert found.pop("resourceType") == "Observation"
    return found
