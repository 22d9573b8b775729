"""Read a submitter's `ifNoneExist`, the condition of a conditional create (https://hl7.org/fhir/R4/http.html#ccreate)."""

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

#: The parameters of a search, decoded and in order.
Parameters = tuple[tuple[str, str], ...]

#: Parameters that shape a result and select nothing (https://hl7.org/fhir/R4/search.html#Summary), with or without a modifier
#: such as `:iterate`. In a condition they could only hide matches.
RESULT = frozenset(
    {
        "_contained",
        "_containedType",
        "_count",
        "_elements",
        "_format",
        "_getpages",
        "_getpagesoffset",
        "_graph",
        "_include",
        "_maxresults",
        "_offset",
        "_pretty",
        "_revinclude",
        "_score",
        "_sort",
        "_summary",
        "_total",
    }
)

#: A token of system and value that can be searched for together with others: no comma, no second bar, no escape, and no white
#: space at an end, which servers trim or not.
ONE_TOKEN = re.compile(r"(?!\s)[^,|\\]*(?<!\s)\|(?!\s)[^,|\\]+(?<!\s)")


def parameters(text: str, resource_type: str) -> Parameters | None:
    """Read `ifNoneExist`: a query, with or without the type before a `?`.

    None if it names another type or selects nothing: it would match every stored resource.
    """
    head, mark, query = text.partition("?")
    if not mark or "=" in head:
        head, query = "", text
    if head.rpartition("/")[2] not in {"", resource_type}:
        return None
    pairs = parse_qsl(query.lstrip("?"))
    return tuple(pair for pair in pairs if pair[0].partition(":")[0] not in RESULT and _selects(pair[1])) or None


def _selects(value: str) -> bool:
    """Whether a value selects anything; servers ignore an empty value, and one of separators alone."""
    return value.strip(" ,|$") != ""


def one_identifier(condition: Sequence[tuple[str, str]]) -> str | None:
    """Return the token of a condition on a single identifier, which can be searched for together with others; else None."""
    match condition:
        case [("identifier", value)] if ONE_TOKEN.fullmatch(value):
            return value
    return None
