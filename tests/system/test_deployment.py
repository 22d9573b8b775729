"""The container image, as far as it can be tested without a container engine: Dockerfile, lock files and contents."""

import http.server
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.places import ROOT

import cgm_proxy
from cgm_proxy import healthcheck
from cgm_proxy.settings.loading import ListenSettings

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, with continued lines joined and without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


DOCKERFILE = instructions((ROOT / "Dockerfile").read_text("utf-8"))
LAST_STAGE = DOCKERFILE[max(index for index, (word, _) in enumerate(DOCKERFILE) if word == "FROM") :]


def arguments(word: str, stage: list[Instruction] = DOCKERFILE) -> list[str]:
    """Return the arguments of each instruction with this word."""
    return [rest for instruction, rest in stage if instruction == word]


def test_the_dockerfile_passes_the_linter():
    linter = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_every_stage_starts_from_the_same_slim_python_image():
    images = {rest.partition(" AS ")[0] for rest in arguments("FROM")}
    assert len(arguments("FROM")) > 1
    assert len(images) == 1
    minor = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["target-version"]
    (image,) = images
    assert re.fullmatch(rf"python:3\.{minor.removeprefix('py3')}(\.\d+)?-slim-[a-z]+", image)


def test_the_image_runs_as_a_numeric_user_that_is_not_root():
    user, _, group = arguments("USER", LAST_STAGE)[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    values = (ROOT / "helm" / "templates" / "deployment.yaml").read_text("utf-8")
    assert f"runAsUser: {user}\n" in values
    assert f"runAsGroup: {group}\n" in values


def test_processes_are_started_without_a_shell_and_stopped_by_sigterm():
    assert arguments("ENTRYPOINT", LAST_STAGE) == ['["cgm-proxy"]']
    assert arguments("CMD", LAST_STAGE) == ['["serve"]']
    assert arguments("STOPSIGNAL", LAST_STAGE) == ["SIGTERM"]
    (check,) = arguments("HEALTHCHECK", LAST_STAGE)
    assert check.endswith('CMD ["python", "-m", "cgm_proxy.healthcheck"]')


def test_everything_is_installed_with_hashes_or_without_an_index():
    installs = [
        shlex.split(command)
        for rest in arguments("RUN")
        for command in rest.split("&&")
        if re.search(r"pip (install|wheel)", command)
    ]
    assert len(installs) == 4
    loose = [words for words in installs if not {"--require-hashes", "--only-binary"} <= set(words)]
    assert [words for words in loose if not {"--no-index", "--no-deps"} <= set(words)] == []


def test_nothing_is_written_outside_the_build_stage():
    assert arguments("RUN", LAST_STAGE) == []
    assert arguments("COPY", LAST_STAGE) == ["--from=build /opt/cgm-proxy /opt/cgm-proxy"]
    assert "PYTHONDONTWRITEBYTECODE=1" in arguments("ENV", LAST_STAGE)[0]


def ignored(name: str) -> bool:
    """Whether .dockerignore excludes a top-level name from the build; the last line that matches decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    matching = [line for line in lines if fnmatch(name, line.removeprefix("!"))]
    return not matching[-1].startswith("!")


def test_the_build_context_has_exactly_the_files_that_are_copied():
    sources = {word for rest in arguments("COPY") if "--from" not in rest for word in rest.split()[:-1]}
    assert [name for name in sources if ignored(name) or not (ROOT / name).exists()] == []
    assert [name for name in (".git", ".venv", ".env", "tests", "helm", "settings.yaml") if not ignored(name)] == []
    assert {path.name for path in ROOT.iterdir() if not ignored(path.name)} == sources


def test_the_labels_have_the_version_and_licence_of_the_package():
    (labels,) = arguments("LABEL", LAST_STAGE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    values = dict(word.split("=", 1) for word in shlex.split(labels))
    assert values["org.opencontainers.image.version"] == project["version"] == cgm_proxy.__version__
    assert values["org.opencontainers.image.licenses"] == project["license"]


def pinned(lock: str) -> dict[str, str]:
    """Return the versions in a lock file, and check that each has a hash."""
    entries = re.split(r"\n(?=[a-z])", (ROOT / lock).read_text("utf-8"))
    matches = [(re.match(r"([a-z0-9.-]+)(?:\[\w+\])?==(\S+)", entry), entry) for entry in entries]
    assert [entry for match, entry in matches if match and "--hash=sha256:" not in entry] == []
    return {match[1]: match[2] for match, _ in matches if match}


def test_the_lock_files_have_the_dependencies_of_the_project_and_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = {re.split(r"[\[<>=; ]", name)[0].replace(".", "-") for name in project["project"]["dependencies"]}
    run, build, develop = (pinned(f"requirements{kind}.lock") for kind in ("", "-build", "-dev"))
    assert names - set(run) == set()
    assert set(project["build-system"]["requires"]) - set(build) == set()
    assert {
        name: (version, develop.get(name)) for name, version in (run | build).items() if develop.get(name) != version
    } == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel as the Dockerfile does."""
    to = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--wheel-dir",
            to,
            ".",
        ],
        cwd=ROOT,
        check=True,
    )
    (built,) = to.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel into a read-only directory of its own."""
    to = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", to, wheel],
        check=True,
    )
    for path in [to, *to.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    yield to
    for path in [to, *to.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def command(installed: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment that run the installed program with its dependencies and the image's variables."""
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {
        "PATH": os.defpath,
        "PYTHONPATH": f"{installed}{os.pathsep}{dependencies}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    start = "import sys, cgm_proxy.cli; sys.exit(cgm_proxy.cli.main())"
    return [sys.executable, "-S", "-c", start, *words], environ


def run(installed: Path, directory: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program outside the checkout."""
    program, environ = command(installed, *words)
    return subprocess.run(program, cwd=directory, env=environ | variables, capture_output=True, text=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_wheel_has_all_files_of_the_package_and_the_rules(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f"cgm_proxy/{path.relative_to(ROOT / 'cgm_proxy').as_posix()}" for path in files(ROOT / "cgm_proxy")}
    rules = {f"cgm_proxy/rules/{path.relative_to(ROOT / 'rules').as_posix()}" for path in files(ROOT / "rules")}
    assert len(rules) > 0
    assert (package | rules) - names == set()


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_installed_program_knows_its_version_outside_the_checkout(installed, tmp_path):
    done = run(installed, tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert cgm_proxy.__version__ in done.stdout


def test_the_installed_program_starts_and_stops_without_writing_files(installed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    program, environ = command(installed, "serve")
    listen = ListenSettings(port=free_port(), ops_port=free_port())
    environ |= {"CGM_PROXY_LISTEN_PORT": str(listen.port), "CGM_PROXY_LISTEN_OPS_PORT": str(listen.ops_port)}
    with subprocess.Popen(program, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as serving:
        for _ in range(600):
            if serving.poll() is not None or healthcheck.alive(listen):
                break
            time.sleep(0.1)
        serving.terminate()
        logged = serving.communicate()[1]
    assert serving.returncode == 0, logged
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_prevents_the_start_with_a_message(installed, tmp_path):
    done = run(installed, tmp_path, "serve", CGM_PROXY_MODE="obsrve")
    assert done.returncode != 0
    assert 'CGM_PROXY_MODE: mode is "obsrve"; write enforce or observe' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def operations():
    """Serve /healthz with the status that the test sets."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    paths: list[str] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.status = paths, 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("host", "status", "alive"), [("0.0.0.0", 200, True), ("127.0.0.1", 200, True), ("127.0.0.1", 503, False)]
)
def test_the_health_check_uses_the_operations_port(operations, host, status, alive):
    operations.status = status
    assert healthcheck.alive(ListenSettings(ops_host=host, ops_port=operations.server_port)) is alive
    assert operations.paths == ["/healthz"]


def test_the_health_check_fails_when_nothing_listens(operations):
    port = operations.server_port
    operations.socket.close()
    assert healthcheck.alive(ListenSettings(ops_port=port)) is False


def test_the_health_check_reads_the_settings_and_exits_with_the_result(operations, tmp_path):
    environ = {"PYTHONPATH": str(ROOT), "CGM_PROXY_LISTEN_OPS_PORT": str(operations.server_port)}
    check = [sys.executable, "-m", "cgm_proxy.healthcheck"]
    operations.status = 503
    assert subprocess.run(check, env=environ, cwd=tmp_path).returncode == 1
    operations.status = 200
    assert subprocess.run(check, env=environ, cwd=tmp_path).returncode == 0
