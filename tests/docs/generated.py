"""The parts of the documentation that are made from the code: tables, the output of commands, and a submission's answer."""

import asyncio
import io
import json
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from inspect import cleandoc
from typing import Any

import aiohttp
from aiohttp import web
from docs.pages import ROOT

import cgm_proxy
from cgm_proxy.cli import main, parser
from cgm_proxy.observability import metrics
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.sandbox.simulation.submissions import patient
from cgm_proxy.sandbox.store.app import make_app
from cgm_proxy.server.proxy import Proxy
from cgm_proxy.settings import loading

#: Longest line of JSON (characters).
LINE = 130

#: A generated part of a page: its name, and what stands between its markers.
PART = re.compile(r"(?<=<!-- )([^>\n]+): made by tests/docs/test_docs\.py -->\n(.*?)(?=<!-- end -->)", re.DOTALL)


def commands() -> str:
    """Return the commands' help as a table."""
    choices = [choice for action in parser()._subparsers._group_actions for choice in action._choices_actions]
    rows = [f"| `cgm-proxy {choice.dest}` | {choice.help} |" for choice in choices]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def answer() -> str:
    """Return what a submitter of `examples/faulty.json` is answered by a proxy in front of the sandbox's store."""
    return f"```json\n{folded(_answered())}\n```"


def entries() -> str:
    """Return the second and third entry of that answer: a reading that is accepted, and one that is refused."""
    return f"```json\n{folded(_answered()['entry'][1:])}\n```"


def folded(value: Any, indent: str = "") -> str:
    """Return JSON in which what fits is on one line."""
    line = json.dumps(value)
    if len(indent) + len(line) <= LINE or not isinstance(value, dict | list):
        return line
    inner = f"{indent}  "
    if isinstance(value, list):
        parts = [folded(item, inner) for item in value]
        return f"[\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}]"
    parts = [f"{json.dumps(key)}: {folded(item, inner)}" for key, item in value.items()]
    return f"{{\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}}}"


@cache
def _answered() -> Any:
    return asyncio.run(_submit((ROOT / "examples/faulty.json").read_bytes()))


async def _submit(bundle: bytes) -> Any:
    store = web.AppRunner(make_app(), access_log=None)
    await store.setup()
    site = web.TCPSite(store, "127.0.0.1", 0)
    await site.start()
    environ = {
        "CGM_PROXY_UPSTREAM_URL": f"http://127.0.0.1:{store.addresses[0][1]}/fhir",
        **{f"CGM_PROXY_LISTEN_{name}HOST": "127.0.0.1" for name in ("", "OPS_")},
        **{f"CGM_PROXY_LISTEN_{name}PORT": "0" for name in ("", "OPS_")},
    }
    settings = loading.load(None, environ)
    proxy = Proxy(settings, load_rules(settings.rules))
    await proxy.start()
    base = f"http://127.0.0.1:{proxy.port}/fhir"
    headers = {"Content-Type": "application/fhir+json"}
    try:
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.put(f"{base}/Patient/example", data=json.dumps(patient())):
                pass
            async with session.post(base, data=bundle) as response:
                return json.loads(await response.read())
    finally:
        await proxy.stop()
        await store.cleanup()


def architecture() -> str:
    """Return the sections of the package's docstring."""
    return "## " + cleandoc(cgm_proxy.__doc__ or "").partition("\n## ")[2]


#: What makes each part, by name; any other name is the command whose output it shows.
MAKERS: dict[str, Callable[[], str]] = {
    "settings": loading.table,
    "metrics": metrics.table,
    "commands": commands,
    "answer": answer,
    "entries": entries,
    "architecture": architecture,
}


def output(command: str) -> str:
    """Return a command of `cgm-proxy` and what it writes, as an example."""
    written = io.StringIO()
    with redirect_stdout(written):
        main(shlex.split(command)[1:])
    return f"```console\n$ {command}\n{written.getvalue().strip()}\n```"


def made(name: str) -> str:
    """Return a generated part."""
    return (MAKERS[name]() if name in MAKERS else output(name)).strip()


def renewed(page: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda found: f"{found[1]}: made by tests/docs/test_docs.py -->\n\n{made(found[1])}\n\n", page)
