"""The documentation says what the code does: generated parts, commands, links and paths are checked.

`python tests/docs/test_docs.py` makes the generated parts anew.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.inventory import inventory
from docs.pages import PAGES, ROOT, Block, anchors, blocks, links, paths, prose

import cgm_proxy
from cgm_proxy.cli import main, parser
from cgm_proxy.settings import loading
from docs import generated

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}

#: Blocks that are read and not run: examples of requests, answers, files and pictures.
EXAMPLES = {"console", "json", "yaml", "text", "mermaid"}

PARTS = [(name, part) for name, text in TEXTS.items() for part, _ in generated.PART.findall(text)]


@pytest.mark.parametrize(("page", "part"), PARTS)
def test_each_generated_part_is_as_the_code_makes_it(page: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = dict(generated.PART.findall(TEXTS[page]))[part]
    assert written.strip() == generated.made(part), "run: python tests/docs/test_docs.py"


def test_every_table_that_the_code_makes_is_on_some_page() -> None:
    assert generated.MAKERS.keys() <= {part for _, part in PARTS}


def test_the_readme_is_a_page_that_one_reads_to_its_end() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    dead = []
    for link in links(TEXTS[page]):
        target = urlsplit(link)
        if target.scheme:
            if target.scheme not in {"http", "https"} or not target.netloc:
                dead.append(link)
            continue
        file = (ROOT / page).parent / unquote(target.path) if target.path else ROOT / page
        if not file.exists() or (target.fragment and target.fragment not in anchors(file.read_text())):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", [*TEXTS, "cgm_proxy/__init__.py"])
def test_every_path_that_is_named_exists(page: str) -> None:
    text = prose(TEXTS[page]) if page in TEXTS else cgm_proxy.__doc__
    places = (ROOT, ROOT / "cgm_proxy", ROOT / "cgm_proxy" / "core", ROOT / "docs")
    named = {path.rstrip("/") for path in paths(text)}
    assert {
        path for path in named if not any((place / end).exists() for place in places for end in (path, f"{path}.py"))
    } == set()


def test_every_module_that_code_and_comments_name_exists() -> None:
    """A module that has moved is named by its new place everywhere."""
    modules = [
        f"/{path.relative_to(ROOT).as_posix()}" for top in ("cgm_proxy", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    files = [ROOT / name for name in ("Makefile", "Dockerfile", "pyproject.toml", "helm/README.md")]
    stale = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in [*files, *(ROOT / module[1:] for module in modules)]
        for name in re.findall(r"(?<![\w./*-])(?:\w+/)*\w+\.py\b", file.read_text())
        if not any(module.endswith(f"/{name}") for module in modules)
    ]
    assert stale == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_says_whether_it_is_run_or_an_example(page: str) -> None:
    assert {block.language for block in blocks(TEXTS[page])} <= {"sh", *EXAMPLES}


def runs() -> Iterator[tuple[str, str]]:
    """Yield the blocks of sh, each with its output where the next block shows it: a block of console without a prompt."""
    for text in TEXTS.values():
        for block, following in pairwise([*blocks(text), Block("", "")]):
            if block.language == "sh":
                shows = following.language == "console" and not following.text.startswith("$ ")
                yield block.text, following.text if shows else ""


def lines(output: str) -> set[str]:
    """Return the lines of an output without their numbers, which are others in each run, and without what stands for more lines."""
    return {re.sub(r"\d[\d,.]*", "#", line).strip() for line in output.splitlines()} - {"", "…"}


#: make, without checking whether .venv is as new as the lock file.
INSTALLED = 'make() { command make -o .venv/.ready "$@"; }'


@pytest.mark.parametrize(("script", "shown"), [*runs()])
def test_every_command_in_a_block_of_sh_succeeds_and_writes_what_is_shown(
    script: str, shown: str, tmp_path: Path
) -> None:
    """It runs in a directory in which the checkout's files are links, so that what it writes is written elsewhere."""
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", f"{INSTALLED}\n{script}"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert lines(shown) <= lines(done.stdout.decode())


SHOWN = [
    line
    for text in TEXTS.values()
    for block in blocks(text)
    if block.language == "console"
    for line in re.findall(r"^\$ ((?:cgm-proxy|make) .+)$", block.text, re.MULTILINE)
]


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_of_an_example_can_be_parsed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *command = shlex.split(re.split(r"[|<>#]", line)[0])
    monkeypatch.chdir(tmp_path)
    for word in command:
        if {".", "/"} & set(word):  # a file or directory of the reader's
            Path(word).mkdir(parents=True, exist_ok=True)
    if program == "make":
        assert re.search(rf"^{command[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "--help" in command:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    else:
        assert parser().parse_args(command).run


@pytest.mark.parametrize("page", TEXTS)
def test_every_example_of_json_is_json(page: str) -> None:
    assert all(json.loads(block.text) for block in blocks(TEXTS[page]) if block.language == "json")


@pytest.mark.parametrize("page", TEXTS)
def test_every_example_of_settings_can_be_loaded(page: str, tmp_path: Path) -> None:
    for block in blocks(TEXTS[page]):
        if block.language == "yaml" and block.text.startswith("# settings.yaml"):
            file = tmp_path / "settings.yaml"
            file.write_text(block.text)
            assert loading.load(file, {})


def test_every_rule_id_and_log_event_is_explained_on_some_page() -> None:
    told = "\n".join(TEXTS.values())
    today = inventory(ROOT)
    assert [name for section in ("codes", "events") for name in today[section] if f"`{name}`" not in told] == []


if __name__ == "__main__":
    os.chdir(ROOT)
    for page in PAGES:
        page.write_text(generated.renewed(page.read_text()))
