"""What maps the public base to the upstream's and back: request targets, links and references."""

import pytest

from cgm_proxy.core.http.base_urls import BaseUrls, LinkRewriter

SAME = BaseUrls.of("http://public.example/fhir", "http://up:8081/fhir/")
MOVED = BaseUrls.of("https://public.example:8443/r4/", "http://up:8081/hapi/fhir")
ROOT = BaseUrls.of("http://public.example", "http://up/fhir")
DEFAULT_PORTS = BaseUrls.of("https://Host.example/fhir", "http://up:80/fhir")
IPV6 = BaseUrls.of("https://[2001:DB8::1]/fhir", "http://[::1]:8081/fhir")
NESTED = BaseUrls.of("http://host/fhir", "http://host/fhir/r4")

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
    (MOVED, "http://[::1]:443/r4/Patient", "/hapi/fhir/Patient"),
    (ROOT, "/Patient", "/fhir/Patient"),
    (ROOT, "/", "/fhir/"),
]


@pytest.mark.parametrize(("bases", "target", "upstream"), TARGETS)
def test_a_request_target_moves_by_whole_segments(bases, target, upstream):
    assert bases.upstream_target(target) == upstream


REFERENCES = [
    (MOVED, "https://public.example:8443/r4/Patient/1", "Patient/1"),
    (MOVED, "http://up:8081/hapi/fhir/Observation/1/_history/2", "Observation/1/_history/2"),
    (MOVED, "https://public.example:8443/r4", None),
    (MOVED, "https://public.example:8443/r4?_id=1", None),
    (MOVED, "http://up:8081.evil.example/hapi/fhir/Patient/1", None),
    (MOVED, "https://public.example/r4/Patient/1", None),
    (MOVED, "http://public.example:8443/r4/Patient/1", None),
    (MOVED, "Patient/1", None),
    (MOVED, "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a", None),
    (MOVED, "", None),
    (MOVED, "#p1", None),
    (ROOT, "http://public.example/Patient/1", "Patient/1"),
    (ROOT, "http://public.example:80/Patient/1", "Patient/1"),
    (ROOT, "http://public.example", None),
    # a default port may be written or left out, whichever way the base has it
    (DEFAULT_PORTS, "https://host.example/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "https://host.example:443/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "http://up/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "http://up:80/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "https://host.example:80/fhir/Patient/1", None),
    (DEFAULT_PORTS, "http://host.example/fhir/Patient/1", None),
    (DEFAULT_PORTS, "https://host.example:4430/fhir/Patient/1", None),
    (DEFAULT_PORTS, "http://up:443/fhir/Patient/1", None),
    # scheme and host have no case, a path has
    (DEFAULT_PORTS, "HTTPS://HOST.example/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "Http://UP:80/fhir/Patient/1", "Patient/1"),
    (DEFAULT_PORTS, "https://host.example/FHIR/Patient/1", None),
    (DEFAULT_PORTS, "https://host.example/fhir/patient/1", "patient/1"),
    # only whole segments count
    (DEFAULT_PORTS, "https://host.example/fhir2/Patient/1", None),
    (DEFAULT_PORTS, "https://host.example/fhi", None),
    (DEFAULT_PORTS, "https://host.example/x/fhir/Patient/1", None),
    (DEFAULT_PORTS, "https://host.example//fhir/Patient/1", None),
    (DEFAULT_PORTS, "see https://host.example/fhir/Patient/1", None),
    # the user of a URL is no host
    (DEFAULT_PORTS, "https://host.example@evil.example/fhir/Patient/1", None),
    (DEFAULT_PORTS, "https://host.example:443@evil.example/fhir/Patient/1", None),
    (DEFAULT_PORTS, "https://user@host.example/fhir/Patient/1", None),
    (DEFAULT_PORTS, "https://user:secret@host.example:443/fhir/Patient/1", None),
    (IPV6, "https://[2001:db8::1]/fhir/Patient/1", "Patient/1"),
    (IPV6, "https://[2001:db8::1]:443/fhir/Patient/1", "Patient/1"),
    (IPV6, "HTTPS://[2001:DB8::1]/fhir/Patient/1", "Patient/1"),
    (IPV6, "http://[::1]:8081/fhir/Patient/1", "Patient/1"),
    (IPV6, "http://[::1]/fhir/Patient/1", None),
    (IPV6, "https://[2001:db8::1:443]/fhir/Patient/1", None),
    (IPV6, "https://2001:db8::1/fhir/Patient/1", None),
    (NESTED, "http://host/fhir/r4/Patient/1", "Patient/1"),
    (NESTED, "http://host/fhir/Patient/1", "Patient/1"),
]


@pytest.mark.parametrize(("bases", "reference", "relative"), REFERENCES)
def test_a_reference_below_one_of_the_bases_is_made_relative_and_any_other_stays(bases, reference, relative):
    assert bases.localize(reference) == (reference if relative is None else relative)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_slashes_at_a_bases_end_do_not_count(slashes):
    bases = BaseUrls.of(f"http://public.example/fhir{slashes}", f"http://up:8081{slashes}")
    assert bases.localize("http://public.example/fhir/Patient/1") == "Patient/1"
    assert bases.localize("http://up:8081/Patient/1") == "Patient/1"
    assert bases.upstream_target("/fhir/Patient/1") == "/Patient/1"
    assert bases.public_location(b"http://up:8081/Patient/1") == b"http://public.example/fhir/Patient/1"
    assert bases.public_url("http://up:8081") == "http://public.example/fhir"


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://up:8081/hapi/fhir", "https://public.example:8443/r4"),
        ("http://up:8081/hapi/fhir/OperationDefinition/x", "https://public.example:8443/r4/OperationDefinition/x"),
        ("HTTP://Up:8081/hapi/fhir/x", "https://public.example:8443/r4/x"),
        ("http://up:8081/hapi/fhirx", "http://up:8081/hapi/fhirx"),
        ("http://up:8081/hapi", "http://up:8081/hapi"),
        ("/hapi/fhir/x", "/hapi/fhir/x"),
        ("http://hl7.org/fhir/x?at=http://up:8081/hapi/fhir", "http://hl7.org/fhir/x?at=http://up:8081/hapi/fhir"),
        ("http://up:8081@evil.example/hapi/fhir", "http://up:8081@evil.example/hapi/fhir"),
    ],
)
def test_only_a_url_at_or_below_the_upstreams_base_becomes_public(url, public):
    assert MOVED.public_url(url) == public


def test_the_upstreams_default_port_may_be_written_or_not():
    assert ROOT.public_url("http://up:80/fhir/x") == ROOT.public_url("http://up/fhir/x") == "http://public.example/x"


LOCATIONS = [
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
    (IPV6, "http://[::1]:8081/fhir/Patient/1", "https://[2001:db8::1]/fhir/Patient/1"),
]


@pytest.mark.parametrize(("bases", "location", "public"), LOCATIONS)
def test_a_location_becomes_public_where_the_upstreams_origin_matches_as_a_whole(bases, location, public):
    assert bases.public_location(location.encode()) == public.encode()


def test_the_other_bytes_of_a_location_stay():
    assert SAME.public_location(b"http://up:8081/fhir/J\xf6rg") == b"http://public.example/fhir/J\xf6rg"


UPSTREAM, PUBLIC = "http://up:8081/hapi/fhir", "https://public.example:8443/r4"
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
def test_links_in_a_body_become_public_however_it_is_cut(body, linked, size):
    sent = (body.replace("%s", UPSTREAM) * 20).encode()
    expected = (body.replace("%s", PUBLIC if linked else UPSTREAM) * 20).encode()
    rewriter = LinkRewriter(MOVED)
    received = b"".join(rewriter.feed(sent[at : at + size]) for at in range(0, len(sent), size)) + rewriter.finish()
    assert received == expected
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
        ("http://a:80/fhir", "http://a/fhir", False),
        ("http://a/fhir", "https://a/fhir", True),
        ("http://a/fhir", "http://a/r4", True),
        ("http://a/fhir", "http://b/fhir", True),
    ],
)
def test_equal_bases_need_no_rewriting(public, upstream, differ):
    assert BaseUrls.of(public, upstream).differ is differ
