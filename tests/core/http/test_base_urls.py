"""Targets and links between the public base and the upstream's."""

import pytest

from cgm_proxy.core.http.base_urls import Bases, LinkRewriter

SAME = Bases.of("http://public.example/fhir", "http://up:8081/fhir/")
MOVED = Bases.of("https://public.example:8443/r4/", "http://up:8081/hapi/fhir")
ROOT = Bases.of("http://public.example", "http://up/fhir")

TARGETS = [
    (SAME, "/fhir/Patient/1?x=%2F", "/fhir/Patient/1?x=%2F"),
    (SAME, "http://evil.example/fhir/Patient?u=http://x/", "/fhir/Patient?u=http://x/"),
    (SAME, "HTTPS://evil.example", "/"),
    (SAME, "http://evil.example?_id=1", "/?_id=1"),
    (SAME, "*", "*"),
    (MOVED, "/r4", "/hapi/fhir"),
    (MOVED, "/r4?_id=1", "/hapi/fhir?_id=1"),
    (MOVED, "/r4/Patient/%41//x", "/hapi/fhir/Patient/%41//x"),
    (MOVED, "/r45/Patient", "/r45/Patient"),
    (MOVED, "/R4/Patient", "/R4/Patient"),
    (MOVED, "/%72%34/Patient", "/%72%34/Patient"),
    (MOVED, "/hapi/fhir/Patient", "/hapi/fhir/Patient"),
    (MOVED, "http://evil.example/r4/Patient", "/hapi/fhir/Patient"),
    (ROOT, "/Patient", "/fhir/Patient"),
    (ROOT, "/", "/fhir/"),
]


@pytest.mark.parametrize(("bases", "raw", "target"), TARGETS)
def test_a_target_moves_by_whole_segments(bases, raw, target):
    assert bases.target(raw) == target


@pytest.mark.parametrize(
    ("url", "published"),
    [
        ("http://up:8081/hapi/fhir", "https://public.example:8443/r4"),
        ("http://up:8081/hapi/fhir/OperationDefinition/x", "https://public.example:8443/r4/OperationDefinition/x"),
        ("http://up:8081/hapi/fhirx", "http://up:8081/hapi/fhirx"),
        ("http://up:8081/hapi", "http://up:8081/hapi"),
        ("/hapi/fhir/x", "/hapi/fhir/x"),
        ("http://hl7.org/fhir/x?at=http://up:8081/hapi/fhir", "http://hl7.org/fhir/x?at=http://up:8081/hapi/fhir"),
    ],
)
def test_only_what_is_at_the_upstreams_base_is_published(url, published):
    assert MOVED.published(url) == published


def test_the_upstreams_default_port_may_be_written_or_not():
    assert ROOT.published("http://up:80/fhir/x") == ROOT.published("http://up/fhir/x") == "http://public.example/x"


LINKS = [
    (SAME, "http://up:8081/fhir/Patient/1/_history/2", "http://public.example/fhir/Patient/1/_history/2"),
    (SAME, "http://up:8081/fhir", "http://public.example/fhir"),
    (SAME, "http://up:8081/fhir?_getpages=1", "http://public.example/fhir?_getpages=1"),
    (SAME, "HTTP://UP:8081/fhir/Patient/1", "http://public.example/fhir/Patient/1"),
    (SAME, "http://up:8081/login", "http://public.example/login"),
    (SAME, "http://up:80810/fhir/Patient/1", "http://up:80810/fhir/Patient/1"),
    (SAME, "http://up:8081.evil.example/fhir", "http://up:8081.evil.example/fhir"),
    (SAME, "http://up:8081@evil.example/fhir", "http://up:8081@evil.example/fhir"),
    (SAME, "https://up:8081/fhir/Patient/1", "https://up:8081/fhir/Patient/1"),
    (SAME, "http://upx/fhir", "http://upx/fhir"),
    (SAME, "Patient/1/_history/2", "Patient/1/_history/2"),
    (SAME, "/fhir/Patient/1", "/fhir/Patient/1"),
    (SAME, "", ""),
    (MOVED, "http://up:8081/hapi/fhir/Patient/1", "https://public.example:8443/r4/Patient/1"),
    (MOVED, "http://up:8081/hapi/fhirx/Patient/1", "https://public.example:8443/hapi/fhirx/Patient/1"),
    (MOVED, "/hapi/fhir/Patient/1", "/r4/Patient/1"),
    (MOVED, "/hapi/fhirx", "/hapi/fhirx"),
    (MOVED, "//up:8081/hapi/fhir", "//up:8081/hapi/fhir"),
    (ROOT, "http://up:80/fhir/Patient/1", "http://public.example/Patient/1"),
    (ROOT, "http://up/fhir/Patient/1", "http://public.example/Patient/1"),
]


@pytest.mark.parametrize(("bases", "link", "public"), LINKS)
def test_a_location_is_made_public_where_the_base_matches_as_a_whole(bases, link, public):
    assert bases.link(link.encode()) == public.encode()


UP, PUBLIC = "http://up:8081/hapi/fhir", "https://public.example:8443/r4"
BODIES = [
    ('{"link":[{"relation":"self","url":"%s?_id=1"}]}', True),
    ('{"link" : [ {\n  "relation" : "next",\n      "url" : "%s?_getpages=1"\n} ]}', True),
    ('{"entry":[{"fullUrl":"%s/Patient/1"}]}', True),
    ('{"response": {"location": "%s/Patient/1/_history/1"}}', True),
    ('{"subject":{"reference":"%s/Patient/1"}}', True),
    ('{"subject":{"reference":"%s"}}', True),
    ('<link><relation value="self"/>\n  <url value="%s?x=1&amp;y"/></link>', True),
    ('<fullUrl value="%s/Patient/1"/>', True),
    ('<subject><reference value="%s/Patient/1"/></subject>', True),
    ('{"resourceType":"StructureDefinition","url":"%s/StructureDefinition/x"}', False),
    ('{"identifier":[{"system":"%s/sid","value":"%s"}]}', False),
    ('{"extension":[{"url":"%s/StructureDefinition/x"}]}', False),
    ('{"text":{"div":"<a href=\\"%s/Patient/1\\">see %s/Patient/1</a>"}}', False),
    ('{"fullUrl":"%sx/Patient/1"}', False),
    ('{"fullUrl":"x%s/Patient/1"}', False),
    ('{"note":"\\"fullUrl\\": %s"}', False),
]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize(("body", "linked"), BODIES)
def test_a_bodys_links_are_made_public_however_it_is_cut(body, linked, size):
    given = (body.replace("%s", UP) * 20).encode()
    wanted = (body.replace("%s", PUBLIC if linked else UP) * 20).encode()
    rewriter = LinkRewriter(MOVED)
    got = b"".join(rewriter.feed(given[at : at + size]) for at in range(0, len(given), size)) + rewriter.finish()
    assert got == wanted
    assert rewriter.found is linked


def test_escaped_slashes_are_read_as_slashes():
    rewriter = LinkRewriter(MOVED)
    body = rb'{"fullUrl":"http:\/\/up:8081\/hapi\/fhir\/Patient\/1"}'
    assert rewriter.feed(body) + rewriter.finish() == rb'{"fullUrl":"https://public.example:8443/r4\/Patient\/1"}'


def test_little_is_held_back():
    rewriter = LinkRewriter(MOVED)
    assert len(rewriter.feed(b"x" * 100_000)) > 99_000


@pytest.mark.parametrize(
    ("public", "upstream", "differ"),
    [
        ("http://a/fhir", "http://a/fhir/", False),
        ("http://A/fhir", "http://a/fhir", False),
        ("http://a/fhir", "https://a/fhir", True),
        ("http://a/fhir", "http://a/r4", True),
        ("http://a/fhir", "http://b/fhir", True),
    ],
)
def test_equal_bases_need_no_rewriting(public, upstream, differ):
    assert Bases.of(public, upstream).differ is differ
