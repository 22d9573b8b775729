"""Servers as fixtures: the embedded store, a real HAPI, either of them in turn, and the proxy in front of it.

With CI=true a skipped test fails the run. Tests marked `guide` are deselected, in CI too, if the guide's material does not lie
beside the repository.
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
#: HAPI's process is not stopped here, because other workers may still use it when this one has finished.
_started: list[servers.Running] = []


@pytest.fixture(scope="session")
def sandbox() -> Iterator[str]:
    """Return the base URL of an embedded store in memory. Each worker has one for the whole run."""
    with servers.served(make_app()) as root:
        yield f"{root}/fhir"


@pytest.fixture(scope="session")
def hapi(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the base URL of a real HAPI. All workers share one for the whole run; it ends together with pytest."""
    missing = [tool for tool in HAPI_NEEDS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"HAPI needs {', '.join(missing)}")
    worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    return _hapi_of(folder.parent, os.getppid()) if worker else _hapi_of(folder, os.getpid())


def _hapi_of(folder: Path, owner: int) -> str:
    """Return the URL in the file "hapi-url". The first worker starts HAPI and writes the file while it holds the lock."""
    with (folder / "hapi-url").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if url := file.read():
            return url
        servers.build_hapi()
        server = servers.hapi_process(folder, f"--owner={owner}")
        server.start()
        _started.append(server)
        file.write(server.url)
        return server.url


@pytest.fixture(scope="session", params=["sandbox", pytest.param("hapi", marks=pytest.mark.hapi)])
def upstream(request: pytest.FixtureRequest) -> str:
    """Return the base URL of each FHIR server in turn. Tests share them, so that one finds what another has stored."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def jobs_path(tmp_path: Path) -> Path:
    """Return the path of the file in which the proxies of `keeping` store submissions."""
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def keeping(jobs_path: Path) -> Callable[..., AbstractAsyncContextManager[World]]:
    """Return a function that runs a proxy with a job queue; it takes settings as `proxying` does."""
    return partial(proxying, jobs__path=jobs_path)


@pytest.fixture
def proxy(upstream: str, tmp_path: Path) -> Iterator[servers.Running]:
    """Run a proxy with the default settings in front of each FHIR server in turn."""
    with servers.proxy(upstream, tmp_path) as server:
        yield server


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guide: reads the guide's material beside the repository; deselected without it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselected = [] if GUIDE.exists() else [item for item in items if item.get_closest_marker("guide")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the lines that tests of any worker recorded (`record_property(section, line)`), and the skipped tests."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    sections: dict[str, list[str]] = {}
    for name, line in (pair for report in reports for pair in report.user_properties):
        sections.setdefault(name, []).append(str(line))
    for name, lines in sorted(sections.items()):
        terminalreporter.section(name)
        terminalreporter.write_line("\n".join(sorted(lines)))
    if skipped := config.stash.get(_skipped, []):
        terminalreporter.section("skipped tests, which CI=true does not allow", red=True)
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
    """Skip the test if neither Valkey nor Redis is installed, but not in CI."""
    if not CI and not (shutil.which("valkey-server") or shutil.which("redis-server")):
        pytest.skip("neither valkey-server nor redis-server is installed")


@pytest.fixture
def valkey(tmp_path: Path, valkey_here: None) -> Iterator[servers.Running]:  # noqa: ARG001
    """Run an empty Valkey (or Redis)."""
    with servers.valkey(tmp_path) as server:
        yield server
