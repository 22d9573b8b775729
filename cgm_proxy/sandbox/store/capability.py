"""The store's CapabilityStatement."""

from functools import cache

from cgm_proxy import __version__
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.sandbox.store import search_parameters

_INTERACTIONS = ("read", "vread", "update", "delete", "history-instance", "create", "search-type")


def statement(base: str) -> JsonObject:
    """Return the CapabilityStatement of a store whose base URL is `base`."""
    implementation = {"description": "cgm-proxy's embedded FHIR store", "url": base}
    return _without_base() | {"implementation": implementation}


@cache
def _without_base() -> JsonObject:
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "software": {"name": "cgm-proxy sandbox", "version": __version__},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "resource": [_resource(name) for name in sorted(search_parameters.RESOURCE_TYPES)],
                "interaction": [{"code": "transaction"}, {"code": "batch"}],
            }
        ],
    }


def _resource(resource_type: str) -> JsonObject:
    parameters = sorted(search_parameters.parameters_of(resource_type).items())
    return {
        "type": resource_type,
        "interaction": [{"code": code} for code in _INTERACTIONS],
        "versioning": "versioned-update",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "not-match",
        "conditionalUpdate": True,
        "conditionalDelete": "single",
        "referencePolicy": ["literal", "enforced", "local"],
        "searchParam": [{"name": name, "type": parameter.documented_type} for name, parameter in parameters],
    }
