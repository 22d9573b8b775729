"""An upstream that stores nothing and answers at once: `python standin.py PORT`.

It serves measurements of the proxy alone. HAPI would need a quarter of an hour for 129,600 readings.
"""

import sys
from itertools import count

from aiohttp import web

CREATED = (
    '{"response":{"status":"201 Created","location":"Observation/%d/_history/1","etag":"1","outcome":'
    '{"resourceType":"OperationOutcome","issue":[{"severity":"information","code":"informational","diagnostics":'
    '"Successfully conditionally created resource \\"Observation/%d/_history/1\\". No existing resources matched."}]}}}'
)

_ids = count(1)


def _fhir(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/fhir+json")


async def transaction(request: web.Request) -> web.Response:
    """Answer that each entry was created."""
    entries = (await request.read()).count(b'"ifNoneExist"')
    created = ",".join(CREATED % (number, number) for number, _ in zip(_ids, range(entries), strict=False))
    return _fhir(f'{{"resourceType":"Bundle","type":"transaction-response","entry":[{created}]}}')


async def search(request: web.Request) -> web.Response:
    """Find nothing."""
    await request.read()
    return _fhir('{"resourceType":"Bundle","type":"searchset","entry":[]}')


async def patient(request: web.Request) -> web.Response:
    """Find every patient."""
    return _fhir(f'{{"resourceType":"Patient","id":"{request.match_info["id"]}"}}')


async def metadata(_: web.Request) -> web.Response:
    """Answer as a HAPI does."""
    return _fhir('{"resourceType":"CapabilityStatement","software":{"name":"HAPI FHIR Server"}}')


def main() -> None:
    """Serve until killed."""
    application = web.Application(client_max_size=2**30)
    routes = [web.post("/fhir", transaction), web.post("/fhir/", transaction), web.get("/fhir/metadata", metadata)]
    routes += [web.get("/fhir/Patient/{id}", patient), web.post("/fhir/{type}/_search", search)]
    application.add_routes(routes)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
