"""URIs: what each type of them must look like, in words.

R4's own pattern for a uri is any text without white space (https://hl7.org/fhir/R4/datatypes.html#uri). Everything beyond
that is what the HL7 validator demands.
"""

import re

#: The characters of Java's `\s`.
SPACE = re.compile(r"[ \t\n\x0b\f\r]")

#: Characters that a code or URI must neither begin nor end with.
WHITE = (
    " \t\n\x0b\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

#: The HL7 validator does not take text of only these characters for a value; it warns and checks no further.
BLANK = re.compile(r"[\t-\x0b\r\x1c-\x20\u1680\u2000-\u2006\u2008-\u200a\u2028\u2029\u205f\u3000]+")

# Repeated groups are possessive (`*+`): otherwise each repetition takes 100 bytes of memory, in case another way is needed.
OID = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*+))++")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SCHEME = re.compile(r"[a-z][a-z0-9_\[\]]*")

#: What the systems of codes begin with; those of identifiers may begin with `ldap:`, too.
SYSTEMS = ("http:", "https:", "urn:")

#: A conditional reference: a search that must find exactly one resource (https://hl7.org/fhir/R4/http.html#trules).
SEARCH = re.compile(r"[A-Za-z]+\?[_a-zA-Z][_a-zA-Z0-9.:-]*=[^=&]*+(?:&[_a-zA-Z][_a-zA-Z0-9.:]*+=[^=&]*+)*+")


def absolute(url: str) -> bool:
    """Whether a URL is absolute: a lower-case scheme, a colon, and text without blanks."""
    scheme, colon, rest = url.partition(":")
    return bool(colon and rest and " " not in rest and SCHEME.fullmatch(scheme))


def uri_fault(url: str) -> str | None:
    """Return what R4 requires instead of `url` as a uri or url; None if it is one."""
    if url.strip(WHITE) != url or SPACE.search(url):
        return "a URI without spaces"
    if url.startswith(("oid:", "uuid:")):
        return "a URI that begins with urn:, such as urn:oid:1.2.36.1 or urn:uuid:…"
    if url.startswith("urn:oid:"):
        return oid_fault(url)
    if url.startswith("urn:uuid:"):
        return uuid_fault(url.partition("#")[0])
    return None


def oid_fault(url: str) -> str | None:
    """Return what R4 requires instead of `url` as an oid; a short OID names an authority, and the validator refuses it."""
    plain = url.removeprefix("urn:oid:")
    valid = plain != url and OID.fullmatch(plain) and (plain.rfind(".") >= 4 or plain.startswith("1.3"))
    return None if valid else "an OID such as urn:oid:1.2.36.1"


def uuid_fault(url: str) -> str | None:
    """Return what R4 requires instead of `url` as a uuid."""
    plain = url.removeprefix("urn:uuid:")
    valid = plain != url and UUID.fullmatch(plain)
    return None if valid else "a lower-case UUID such as urn:uuid:c757873d-ec9a-4326-a141-556f43239520"


def canonical_fault(url: str) -> str | None:
    """Return what R4 requires instead of `url` as a canonical: an absolute URL, or `#id` of a contained resource."""
    plain = url.rpartition("|")[0] if url.startswith("urn:uuid:") and "|" in url else url
    return uri_fault(plain) or (None if url.startswith("#") or absolute(url) else "an absolute URL")
