"""Narrative as the HL7 validator reads it."""

import pytest

from cgm_proxy.core.r4.narrative import narrative_fault

GOOD = [
    "x", "<p>x</p>", "<span>a<span>b</span></span>", "<ul> <li>x</li> </ul>", "<table><tr><td>x</td></tr></table>",
    "<table><thead><tr><th>x</th></tr></thead><tfoot><tr><td>z</td></tr></tfoot></table>", "<dl><dt>a</dt><dd>b</dd></dl>",
    "<br/>x", '<img src="a.png"/>x', '<img src="#b" id="b"/>x', '<a href="#q">x</a><p id="q">y</p>',
    '<a href="#q">x</a><a name="q">y</a>', '<a href="mailto:x@y.z">x</a>', '<a href="http://x.org/\u00e4">x</a>',
    '<a href="#">x</a>', '<a href="#held">x</a>', '<img src="data:image/png;base64,AAAA"/>x',
    '<map name="m"><area href="x"/></map>x', "<table><caption>x</caption></table>",
    "<table><colgroup><col/></colgroup><tr><td>a</td></tr></table>", "<h1>x<p>y</p></h1>",
    '<pre xml:space="preserve">x</pre>', '<blockquote cite="x">x</blockquote>', '<p xml:lang="en">x</p>',
    '<p lang="en" dir="ltr" style="x" title="t" id="i">x</p>',
    '<table border="1" summary="s"><tr><td nowrap="x" colspan="2">x</td></tr></table>', "<!-- c -->x", "&#160;", "&amp;",
    "<p><dl><dt>x</dt></dl></p>", "<small>x<big>y</big></small>", "\u00a0",
]  # fmt: skip
BAD = [
    "<p>a<div>b</div></p>", "<p>a<span><table><tr><td>x</td></tr></table></span></p>", "<b>a<b>c</b></b>",
    "<b>a<i>c<b>d</b></i></b>", "<span><div>x</div></span>", "<ul>text<li>x</li></ul>", "<ul/>", "<li>x</li>",
    "<table>x</table>", "<tr><td>x</td></tr>", "<table><td>x</td></table>", "<dl><p>x</p></dl>", "<dt>x</dt>",
    "<br>x</br>", '<a href="#q">x</a>', '<a href="">x</a>', '<a href="a b">x</a>', '<a href="javascript:x">x</a>',
    '<a href="JavaScript:x">x</a>', '<a href="urn:x">x</a>', '<img src="#q"/>x', '<a href="http://x.org/{a}">x</a>',
    '<img src="data:x"/>x', "<map><p>x</p></map>", "<caption>x</caption>", "<col/>x", "<h1><ul><li>x</li></ul></h1>",
    "<pre>x<pre>y</pre></pre>", '<p cite="x">x</p>', '<p bgcolor="x">x</p>', "<del>x</del>", "<font>x</font>",
    '<p xmlns="http://other">x</p>', "<!-- c -->", "&nbsp;", " ", "<script>x</script>", "<style>x</style>",
    '<p onclick="x">y</p>', '<p data-x="1">y</p>', '<p xmlns:foo="u" foo:bar="1">y</p>', '<img src="x" onerror="y"/>x',
    "<p>a<br>b</p>", "<P>x</P>", "<object/>x", "<p><p>x</p></p>", "<p><b><p>x</p></b></p>", "<a><a>x</a></a>",
    "<table><tr>x<td>y</td></tr></table>", "<iframe src='x'/>",
]  # fmt: skip
WHOLE = {
    "a document type": '<!DOCTYPE div [<!ENTITY a "b">]><div xmlns="http://www.w3.org/1999/xhtml">&a;</div>',
    "no namespace": "<div>x</div>",
    "another element": '<p xmlns="http://www.w3.org/1999/xhtml">x</p>',
    "no XML": "x",
}


def div(content: str) -> str:
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{content}</div>'


@pytest.mark.parametrize("content", GOOD)
def test_narrative_that_r4_allows_has_no_fault(content: str) -> None:
    assert narrative_fault(div(content), frozenset({"held"})) is None


@pytest.mark.parametrize("content", BAD)
def test_for_other_narrative_the_fault_names_what_is_required(content: str) -> None:
    assert narrative_fault(div(content))


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_text_that_is_not_an_xhtml_div_is_a_fault(text: str) -> None:
    assert narrative_fault(text)


def test_endless_nesting_is_a_fault_and_not_an_error() -> None:
    assert narrative_fault(div("<div>" * 5_000 + "x" + "</div>" * 5_000))
