"""Servers that tests may ask for: the embedded store, a real HAPI, either of them, and the proxy before either.

With CI=true nothing may be skipped: a skipped test fails the run. Tests marked `guide` are left out, in CI as anywhere,
where the guide's material does not lie beside the repository.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
from support import servers
from support.places import GUIDE
from support.proxying import World, proxying

from cgm_proxy.sandbox.store.app import make_app

CI = os.environ.get("CI") == "true"
HAPI_NEEDS = ("java", "mvn", "make")
_skipped = pytest.StashKey[list[str]]()
#: HAPI's process is neither stopped nor forgotten here: other workers may still use it when this one is done.
_started: list[servers.Running] = []


@pytest.fixture(scope="session")
def sandbox() -> Iterator[str]:
    """Give the base URL of an embedded store in memory, one for the run (for each worker)."""
    with servers.served(make_app()) as root:
        yield f"{root}/fhir"


@pytest.fixture(scope="session")
def hapi(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the base URL of a real HAPI, one for the whole run, all workers: it ends when pytest does."""
    missing = [tool for tool in HAPI_NEEDS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"HAPI needs {', '.join(missing)}")
    worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    return _hapi_of(folder.parent, os.getppid()) if worker else _hapi_of(folder, os.getpid())


def _hapi_of(folder: Path, owner: int) -> str:
    """Give the URL that the first who came here wrote down, once HAPI was ready."""
    with (folder / "hapi-url").open("a+") as known:
        fcntl.flock(known, fcntl.LOCK_EX)
        known.seek(0)
        if url := known.read():
            return url
        servers.build_hapi()
        server = servers.hapi_process(folder, f"--owner={owner}")
        server.start()
        _started.append(server)
        known.write(server.url)
        return server.url


@pytest.fixture(scope="session", params=["sandbox", pytest.param("hapi", marks=pytest.mark.hapi)])
def upstream(request: pytest.FixtureRequest) -> str:
    """Give the base URL of each FHIR server in turn; what one test stored, others may find."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def jobs_path(tmp_path: Path) -> Path:
    """Name the file in which `keeping` keeps submissions."""
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def keeping(jobs_path: Path) -> Callable[..., AbstractAsyncContextManager[World]]:
    """Run a proxy that keeps submissions, with settings as `proxying` takes them."""
    return partial(proxying, jobs__path=jobs_path)


@pytest.fixture
def proxy(upstream: str, tmp_path: Path) -> Iterator[servers.Running]:
    """Run a proxy with the default settings before each FHIR server in turn."""
    with servers.proxy(upstream, tmp_path) as server:
        yield server


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guide: reads the guide's material beside the repository; left out without it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [] if GUIDE.exists() else [item for item in items if item.get_closest_marker("guide")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what tests recorded (`record_property(section, line)`), whichever worker ran them, and what was skipped."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    told: dict[str, list[str]] = {}
    for name, line in (each for report in reports for each in report.user_properties):
        told.setdefault(name, []).append(str(line))
    for name, lines in sorted(told.items()):
        terminalreporter.section(name)
        terminalreporter.write_line("\n".join(sorted(lines)))
    if skipped := config.stash.get(_skipped, []):
        terminalreporter.section("skipped, which CI=true does not allow", red=True)
        for test in skipped:
            terminalreporter.line(test)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    if CI and reports and not hasattr(session.config, "workerinput"):
        session.config.stash[_skipped] = [f"{report.nodeid}: {report.longrepr[2]}" for report in reports]
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def valkey_here() -> None:
    """Skip where there is neither Valkey nor Redis; never in CI."""
    if not CI and not (shutil.which("valkey-server") or shutil.which("redis-server")):
        pytest.skip("there is no valkey-server and no redis-server")


@pytest.fixture
def valkey(tmp_path: Path, valkey_here: None) -> Iterator[servers.Running]:  # noqa: ARG001
    """Run a Valkey (or Redis) that holds nothing."""
    with servers.valkey(tmp_path) as server:
        yield server
