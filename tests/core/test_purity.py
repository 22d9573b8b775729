"""`core/` does no I/O. The linter refuses imports (`banned-api` in pyproject.toml); this refuses the calls that need none."""

import ast

import pytest
from support.places import ROOT

CORE = ROOT / "cgm_proxy" / "core"
FILES = sorted(CORE.rglob("*.py"))
#: Built-in functions that do I/O, and methods of paths that do.
IMPURE = {"open", "print", "input", "breakpoint", "read_text", "read_bytes", "write_text", "write_bytes", "urlopen"}


def impure_calls(source: str) -> list[str]:
    """Return the calls of functions and methods that do I/O, each with its line."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = ((node.lineno, getattr(node.func, "id", getattr(node.func, "attr", ""))) for node in calls)
    return [f"line {line}: {name}()" for line, name in sorted(names) if name in IMPURE]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CORE)) for path in FILES])
def test_a_module_of_core_does_no_io(path) -> None:
    assert impure_calls(path.read_text("utf-8")) == []


def test_a_call_that_does_io_is_found() -> None:
    assert impure_calls("x = 1\nopen('f').read()\npath.read_text()") == ["line 2: open()", "line 3: read_text()"]
