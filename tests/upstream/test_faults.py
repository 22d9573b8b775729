"""An upstream whose answers never end: neither the wait nor the memory grows without bound."""

import asyncio

import pytest
from aiohttp import web
from multidict import CIMultiDict
from support.fake_upstream import FakeResponse, PassOn, before, gets, searches
from support.proxying import proxying

SHORT = {"limits__seconds": 1, "upstream__read_timeout": 0.5}


async def trickling(request: web.BaseRequest, _pass: PassOn) -> None:
    """Answer a byte at a time, each soon enough for the read timeout."""
    answer = web.StreamResponse(headers={"Content-Type": "application/fhir+json"})
    await answer.prepare(request)
    while request.transport is not None:
        await answer.write(b" ")
        await asyncio.sleep(0.05)


async def paging(_request: web.BaseRequest, _pass: PassOn) -> FakeResponse:
    """Answer each page with a link to a next one."""
    await asyncio.sleep(0.05)
    page = b'{"resourceType":"Bundle","link":[{"relation":"next","url":"http://x/ServiceRequest?page=1"}]}'
    return FakeResponse(200, CIMultiDict(), page)


@pytest.mark.parametrize(
    ("about", "act"),
    [
        (gets("Patient/"), trickling),
        (searches("ServiceRequest"), trickling),
        (lambda asked: asked.path.startswith("ServiceRequest"), paging),
    ],
    ids=["a patient that trickles", "a search that trickles", "pages without end"],
)
async def test_a_submission_does_not_wait_for_ever_for_what_keeps_coming(about, act) -> None:
    async with proxying(**SHORT) as world:
        world.fake.always(about, act)
        answer = await world.submit(world.readings(1))
        assert (answer.status, answer.rules) == (504, ["upstream-timeout"])
        assert await world.count() == 0


async def test_an_answer_longer_than_any_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgm_proxy.upstream.client.LARGEST_AT_LEAST", 0)
    async with proxying(limits__body_bytes=10_000) as world:
        world.fake.always(searches("ServiceRequest"), before(200, b" " * 100_000))
        answer = await world.submit(world.readings(1))
        assert (answer.status, answer.rules) == (502, ["upstream-broken"])
        assert await world.count() == 0
