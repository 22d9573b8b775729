"""`cgm-proxy check`: read files, judge them and print the verdicts."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cgm_proxy.commands.checker import Checker, CheckResult
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.settings.loading import Settings


class UnreadableFileError(Exception):
    """A file that can't be read."""


def run(files: Sequence[str], settings: Settings, *, dialect: str | None, output: str) -> int:
    """Print a verdict for each resource and return the exit status: 1 if one is refused, 2 if a file can't be read.

    With a `dialect`, each file is one resource that is judged by that version's profiles; otherwise it is a submission, a
    resource or NDJSON.
    """
    checker = Checker(load_rules(settings.rules), settings)
    failed = False
    try:
        for result in _results(checker, files, dialect):
            sys.stdout.write(f"{result.as_json() if output == 'ndjson' else result.as_text()}\n")
            failed |= not result.passed
    except UnreadableFileError as error:
        sys.stderr.write(f"cgm-proxy: {error}\n")
        return 2
    return 1 if failed else 0


def _results(checker: Checker, files: Sequence[str], dialect: str | None) -> Iterator[CheckResult]:
    if dialect:
        yield from checker.check_resources({name: _content(name) for name in files}, dialect)
    else:
        for name in files:
            yield from checker.check_file(name, _content(name))


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"can't read {name}: {error.strerror}") from error
