"""Someone else's authority over updates and kept results."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.later import keep, result, submission_entry
from support.proxying import proxying


@pytest.mark.parametrize("accept", ["application/fhir+json", "application/fhir+xml"])
async def test_the_resources_of_a_kept_result_are_for_the_credentials_that_it_came_with(keeping, accept: str) -> None:
    """Another token of the same patient gets the statuses and locations alone."""
    async with keeping() as world:
        prefer = "respond-async, return=representation"
        path = await keep(world, world.readings(2), Prefer=prefer, Authorization="Bearer own")
        answers = {
            token: submission_entry(await result(world, path, Authorization=f"Bearer {token}", Accept=accept))
            for token in ("own", "other")
        }
        own, other = (answers[token]["resource"]["entry"] for token in ("own", "other"))
        assert [entry["resource"]["resourceType"] for entry in own] == ["Observation"] * 2
        assert [entry["response"] for entry in other] == [entry["response"] for entry in own]
        assert not any("resource" in entry for entry in other)


async def test_a_restart_and_a_file_of_an_earlier_version_keep_whose_a_result_is(keeping, jobs_path: Path) -> None:
    """Nobody is known to own a result of an earlier version: it is shown without resources."""
    prefer = "respond-async, return=representation"
    async with keeping() as world:
        path = await keep(world, world.readings(1), Prefer=prefer, Authorization="Bearer own")
        await result(world, path, Authorization="Bearer own")
        about = world.about
    for known in (True, False):
        async with keeping() as world:
            await world.put({"resourceType": "Patient", "id": about.partition("/")[2]})
            answer = submission_entry(await result(world, path, Authorization="Bearer own"))
            assert ["resource" in entry for entry in answer["resource"]["entry"]] == [known]
        with closing(sqlite3.connect(jobs_path)) as file:
            file.execute("ALTER TABLE job DROP COLUMN owner")


async def test_metadata_lists_the_guides_profiles() -> None:
    async with proxying() as world:
        (rest,) = (await world.request("GET", "metadata")).body["rest"]
        listed = {each["type"]: each.get("supportedProfile", []) for each in rest["resource"]}
        base = "http://hl7.org/fhir/uv/cgm/StructureDefinition"
        assert f"{base}/cgm-sensor-reading-mass-per-volume" in listed["Observation"]
        assert f"{base}/cgm-summary-pdf" in listed["DiagnosticReport"]
        assert f"{base}/cgm-device" in listed["Device"]
        assert not any("us-core" in url for urls in listed.values() for url in urls)
