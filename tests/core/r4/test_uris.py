"""URIs are refused in words that name what is expected; the values of each type are also in test_primitives.py."""

import pytest

from cgm_proxy.core.r4.uris import BLANK, SEARCH, absolute, canonical_fault, oid_fault, uri_fault, uuid_fault


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://x.example", True),
        ("urn:iso:std:iso:3166", True),
        ("a:b", True),
        ("mailto:a@b.example", True),
        ("HTTP://x.example", False),
        ("http:", False),
        (":x", False),
        ("x", False),
        ("http://a b", False),
        ("", False),
    ],
)
def test_an_absolute_url_has_a_lower_case_scheme(url: str, expected: bool) -> None:
    assert absolute(url) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("relative", None),
        ("urn:oid:1.2.3.4", None),
        ("urn:uuid:c757873d-ec9a-4326-a141-556f43239520#x", None),
        (" x", "a URI without spaces"),
        ("a b", "a URI without spaces"),
        ("oid:1.2.3.4", "a URI that begins with urn:, such as urn:oid:1.2.36.1 or urn:uuid:…"),
        ("urn:oid:1.2", "an OID such as urn:oid:1.2.36.1"),
        ("urn:uuid:X", "a lower-case UUID such as urn:uuid:c757873d-ec9a-4326-a141-556f43239520"),
    ],
)
def test_a_uri_has_no_spaces_and_its_urn_is_valid(url: str, expected: str | None) -> None:
    assert uri_fault(url) == expected


def test_an_oid_names_more_than_an_authority() -> None:
    valid = [
        oid_fault(url) is None
        for url in ("urn:oid:1.2.36.1", "urn:oid:1.3", "urn:oid:1.2.3", "1.2.36.1", "urn:oid:1.02.3.4")
    ]
    assert valid == [True, True, False, False, False]


def test_a_uuid_has_its_prefix_and_lower_case() -> None:
    plain = "c757873d-ec9a-4326-a141-556f43239520"
    assert [uuid_fault(url) is None for url in (f"urn:uuid:{plain}", plain, f"urn:uuid:{plain.upper()}")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://x.example/a|1", None),
        ("#a", None),
        ("urn:uuid:c757873d-ec9a-4326-a141-556f43239520|1", None),
        ("a", "an absolute URL"),
        ("a b", "a URI without spaces"),
    ],
)
def test_a_canonical_is_absolute_or_a_fragment(url: str, expected: str | None) -> None:
    assert canonical_fault(url) == expected


def test_a_conditional_reference_has_names_and_values() -> None:
    found = [
        bool(SEARCH.fullmatch(text))
        for text in ("Patient?identifier=a|b", "Patient?a=1&_b:c=2", "Patient?", "Patient?=a")
    ]
    assert found == [True, True, False, False]


def test_blank_text_is_the_white_space_of_java() -> None:
    assert [bool(BLANK.fullmatch(text)) for text in (" ", "\u2028", "\u00a0", "", "a")] == [
        True,
        True,
        False,
        False,
        False,
    ]
