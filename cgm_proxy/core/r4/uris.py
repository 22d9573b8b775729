"""URIs, as the HL7 validator reads them: what each kind of them must look like, in words.

R4's own pattern for a uri is any text without white space (https://hl7.org/fhir/R4/datatypes.html#uri); what is added here
is what the validator asks beyond it.
"""

import re

#: Letters that Java's `\s` means.
SPACE = re.compile(r"[ \t\n\x0b\f\r]")
#: Letters that a code or URI must neither begin nor end with.
WHITE = (
    " \t\n\x0b\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
#: A text of these letters alone is no value to the validator: it only warns.
BLANK = re.compile(r"[\t-\x0b\r\x1c-\x20\u1680\u2000-\u2006\u2008-\u200a\u2028\u2029\u205f\u3000]+")
OID = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*))+")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SCHEME = re.compile(r"[a-z][a-z0-9_\[\]]*")
#: What systems of codes begin with; those of identifiers may be `ldap:` too.
SYSTEMS = ("http:", "https:", "urn:")
ISO = ("urn:iso:", "urn:iso-iec:", "urn:iso-cie:", "urn:iso-astm:", "urn:iso-ieee:", "urn:iec:")
#: A conditional reference: a search for the one resource that is meant.
SEARCH = re.compile(r"[A-Za-z]+\?[_a-zA-Z][_a-zA-Z0-9.:-]*=[^=&]*(?:&[_a-zA-Z][_a-zA-Z0-9.:]*=[^=&]*)*")


def absolute(url: str) -> bool:
    """Whether a URL is absolute: a lower-case scheme, a colon, and more without blanks."""
    scheme, colon, rest = url.partition(":")
    return bool(colon and rest and " " not in rest and (SCHEME.fullmatch(scheme) or url.startswith(ISO)))


def uri_fault(url: str) -> str | None:
    """Say what a URI must be when `url` is none."""
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
    """Say what an OID must be: not short, for a short one names an authority and no thing."""
    plain = url.removeprefix("urn:oid:")
    good = plain != url and OID.fullmatch(plain) and (plain.rfind(".") >= 4 or plain.startswith("1.3"))
    return None if good else "an OID such as urn:oid:1.2.36.1"


def uuid_fault(url: str) -> str | None:
    """Say what a UUID must be."""
    plain = url.removeprefix("urn:uuid:")
    good = plain != url and UUID.fullmatch(plain)
    return None if good else "a lower-case UUID such as urn:uuid:c757873d-ec9a-4326-a141-556f43239520"


def canonical_fault(url: str) -> str | None:
    """Say what a canonical must be: an absolute URL, or `#id` of a contained resource."""
    plain = url.rpartition("|")[0] if url.startswith("urn:uuid:") and "|" in url else url
    return uri_fault(plain) or (None if url.startswith("#") or absolute(url) else "an absolute URL")
