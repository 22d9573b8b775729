"""JSON of the resources that the program itself creates, which it builds with the models of fhir.resources.

The R4B models are the closest to R4 that fhir.resources has. Of the types that the program creates only Extension differs:
R4B adds `valueRatioRange` and `valueCodeableReference`, and lacks `valueMeta`.
"""

from base64 import b64encode
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from fhir.resources.R4B.element import Element
from fhir.resources.R4B.fhirprimitiveextension import FHIRPrimitiveExtension
from fhir.resources.R4B.resource import Resource

from cgm_proxy.core.json_values import JsonObject

#: What a model is: a resource, a data type or element, or the extensions of a primitive value.
Model = Resource | Element | FHIRPrimitiveExtension


def as_json(model: Model) -> JsonObject:
    """Return a resource or data type as JSON, its elements in the order of the specification.

    Decimals stay Decimals, so that 100.0 and 5.60 keep their digits; `model_dump` of fhir.resources writes floats.
    """
    content: JsonObject = {"resourceType": model.get_resource_type()} if isinstance(model, Resource) else {}
    fields = model.get_alias_mapping()
    for element in model.elements_sequence():
        field = fields[element]
        for name, value in ((element, getattr(model, field)), (f"_{element}", getattr(model, f"{field}__ext", None))):
            if value is not None:
                content[name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Model):
        return as_json(value)
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else value
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    return value
