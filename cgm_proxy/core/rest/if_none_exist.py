"""Read the condition of a conditional create (https://hl7.org/fhir/R4/http.html#ccreate), as a submitter wrote it."""

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

#: What a search's parameters are, decoded and in order.
Parameters = tuple[tuple[str, str], ...]

#: Parameters that shape a result and choose nothing (https://hl7.org/fhir/R4/search.html#Summary); `:iterate` and the like
#: may follow. In a condition they could only hide matches.
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

#: A token of system and value that can stand beside others: without comma, bar and the backslash that escapes them.
ONE_TOKEN = re.compile(r"[^,|\\]*\|[^,|\\]+")


def parameters(text: str, kind: str) -> Parameters | None:
    """Read `ifNoneExist`: a query, with or without the type before a `?`.

    None where it is about another type or chooses nothing: it would match whatever is stored.
    """
    head, mark, query = text.partition("?")
    if not mark or "=" in head:
        head, query = "", text
    if head.rpartition("/")[2] not in {"", kind}:
        return None
    pairs = parse_qsl(query.lstrip("?"))
    return tuple(pair for pair in pairs if pair[0].partition(":")[0] not in RESULT and _says(pair[1])) or None


def _says(value: str) -> bool:
    """Tell whether a value chooses anything: servers pass over an empty one, and over one of separators alone."""
    return value.strip(" ,|$") != ""


def one_identifier(wanted: Sequence[tuple[str, str]]) -> str | None:
    """Give the token of a condition on one identifier alone, which can be looked up together with others; else None."""
    match wanted:
        case [("identifier", value)] if ONE_TOKEN.fullmatch(value):
            return value
    return None
