"""Narratives keep their XHTML: as text in JSON, as elements in XML."""

import pytest
from support.xml_samples import content

from cgm_proxy.core.codec.xhtml import div_as_xml, legal
from cgm_proxy.core.r4.narrative import XHTML

#: Two escaped divs.
TWO_DIVS = f'&lt;div xmlns="{XHTML}"/&gt;' * 2


def div_of(inside: str, attributes: str = "") -> str:
    """Read a narrative and return its div as text in JSON."""
    return content(f'<text><div xmlns="{XHTML}"{attributes}>{inside}</div></text>')["text"]["div"]


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", f'<div xmlns="{XHTML}"/>'),
        ("a", f'<div xmlns="{XHTML}">a</div>'),
        ("a &lt; b &amp; c", f'<div xmlns="{XHTML}">a &lt; b &amp; c</div>'),
        ("<p>a<br/>b</p>", f'<div xmlns="{XHTML}"><p>a<br/>b</p></div>'),
        ("<!-- comment -->a", f'<div xmlns="{XHTML}">a</div>'),
        ('<a title="&quot;&#9;&#10;&lt;">x</a>', f'<div xmlns="{XHTML}"><a title="&quot;&#9;&#10;&lt;">x</a></div>'),
        ("a&#13;b", f'<div xmlns="{XHTML}">a&#13;b</div>'),
        ('<p xml:lang="de">a</p>', f'<div xmlns="{XHTML}"><p xml:lang="de">a</p></div>'),
        ('<p xmlns:o="urn:o" o:k="v">a</p>', f'<div xmlns="{XHTML}"><p xmlns:a0="urn:o" a0:k="v">a</p></div>'),
        ('<svg xmlns="urn:s"><g/></svg>', f'<div xmlns="{XHTML}"><svg xmlns="urn:s"><g/></svg></div>'),
    ],
)
def test_a_div_in_xml_becomes_text(inside: str, expected: str) -> None:
    assert div_of(inside) == expected


def test_a_div_keeps_its_attributes() -> None:
    assert div_of("a", ' class="c"') == f'<div xmlns="{XHTML}" class="c">a</div>'


def test_a_prefixed_div_is_written_without_its_prefix() -> None:
    xml = f'<text><h:div xmlns:h="{XHTML}"><h:p>a</h:p></h:div></text>'
    assert content(xml)["text"]["div"] == f'<div xmlns="{XHTML}"><p>a</p></div>'


@pytest.mark.parametrize(
    ("div", "expected"),
    [
        (f'<div xmlns="{XHTML}"><b>a</b></div>', f'<div xmlns="{XHTML}"><b>a</b></div>'),
        ("<div>a</div>", f'<div xmlns="{XHTML}">&lt;div&gt;a&lt;/div&gt;</div>'),
        (f'<p xmlns="{XHTML}">a</p>', f'<div xmlns="{XHTML}">&lt;p xmlns="{XHTML}"&gt;a&lt;/p&gt;</div>'),
        (f'<div xmlns="{XHTML}">a', f'<div xmlns="{XHTML}">&lt;div xmlns="{XHTML}"&gt;a</div>'),
        (f'<div xmlns="{XHTML}"/>' * 2, f'<div xmlns="{XHTML}">{TWO_DIVS}</div>'),
        ("</x><y>", f'<div xmlns="{XHTML}">&lt;/x&gt;&lt;y&gt;</div>'),
        (
            "<!DOCTYPE x [<!ENTITY a 'b'>]>&a;",
            f"<div xmlns=\"{XHTML}\">&lt;!DOCTYPE x [&lt;!ENTITY a 'b'&gt;]&gt;&amp;a;</div>",
        ),
        ("a\0b", f'<div xmlns="{XHTML}">a\N{REPLACEMENT CHARACTER}b</div>'),
    ],
)
def test_text_that_is_no_xhtml_div_is_shown_as_text(div: str, expected: str) -> None:
    assert div_as_xml(div) == expected


def test_only_characters_that_xml_cannot_hold_are_replaced() -> None:
    assert legal("a\tb\nc\rd é \U0001f600") == "a\tb\nc\rd é \U0001f600"
    assert legal("\0\x0b\x1f\ud800\ufffe") == "\N{REPLACEMENT CHARACTER}" * 5
