"""The commands: serve, demo, check, rules."""

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import uvloop

from cgm_proxy import __version__
from cgm_proxy.commands.check import check_file, check_resources
from cgm_proxy.commands.check_lines import Checked
from cgm_proxy.commands.demo import demo, print_submission
from cgm_proxy.core.rules.rulebook import RuleBook, RulesError
from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID
from cgm_proxy.observability.logs import start as start_logs
from cgm_proxy.rulekit.importer import import_guide
from cgm_proxy.rulekit.lint import lint
from cgm_proxy.rulekit.listing import list_profile
from cgm_proxy.rulekit.samples import run_samples
from cgm_proxy.server.proxy import RELOADING, load_rules, serve, shipped_rules
from cgm_proxy.settings.loading import Settings, load, printable
from cgm_proxy.settings.schema import SettingsError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 -- it has no public name

#: How long a thread that judges may keep the event loop waiting (seconds). With Python's 5 ms, small GETs beside a submission of
#: 25,920 readings took twice as long (median 14 ms, not 8; 99th percentile 100, not 60), and the submission no less.
SWITCH = 0.001


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 2 where settings or rules are faulty."""
    given = parser().parse_args(arguments)
    try:
        status: int = given.run(given)
    except (SettingsError, RulesError) as error:
        sys.stderr.write(f"cgm-proxy: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads our output has seen enough
        sys.stdout = None
        return 0
    return status


def parser() -> argparse.ArgumentParser:
    """Make the parser; each command's arguments say what runs it."""
    top = argparse.ArgumentParser(prog="cgm-proxy", description="Receive CGM data in front of any FHIR R4 server.")
    top.add_argument("--version", action="version", version=f"cgm-proxy {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="run the proxy")
    serving.add_argument("--settings", type=Path, metavar="FILE", help="YAML settings (also CGM_PROXY_SETTINGS)")
    serving.add_argument("--print-settings", action="store_true", help="show all settings, secrets masked, and stop")
    serving.set_defaults(run=_serve)
    showing = commands.add_parser("demo", help="show the main job on an embedded store")
    showing.add_argument("--serve", action="store_true", help="keep it running afterwards")
    showing.add_argument("--print-submission", action="store_true", help="write a small submission and stop")
    showing.set_defaults(run=_demo)
    _add_check(commands)
    _add_rules(commands)
    return top


def _add_check(commands: Commands) -> None:
    checking = commands.add_parser("check", help="judge Bundles, resources or NDJSON as an online submission would be")
    checking.add_argument("files", nargs="+", metavar="FILE", help="JSON, XML or NDJSON; - is standard input")
    checking.add_argument("--output", choices=("text", "ndjson"), default="text")
    checking.add_argument(
        "--dialect",
        choices=DIALECTS_BY_ID,
        help="judge single resources by this version's rules alone; they may refer to one another",
    )
    checking.add_argument("--settings", type=Path, metavar="FILE", help="YAML settings: own rules, limits")
    checking.set_defaults(run=_check)


def _add_rules(commands: Commands) -> None:
    ruling = commands.add_parser("rules", help="list, lint, test and import rules")
    actions = ruling.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show a profile's rules as a table, or all profiles")
    listing.add_argument("profile", nargs="?", default="")
    listing.set_defaults(run=_list_rules)
    for name, run, what in (
        ("lint", _lint_rules, "find mistakes in rules"),
        ("test", _test_rules, "run rules' samples"),
    ):
        action = actions.add_parser(name, help=what)
        action.add_argument(
            "directories", nargs="*", type=_directory, metavar="DIRECTORY", help="own rules, beside the shipped ones"
        )
        action.set_defaults(run=run)
    importing = actions.add_parser("import", help="compile a guide's StructureDefinitions into rules")
    importing.add_argument("guide", type=_guide, help="the guide's package (.tgz), or directory of its JSON files")
    importing.add_argument("--dialect", required=True, help="name of the guide's version")
    importing.add_argument("--out", type=Path, required=True, metavar="DIRECTORY")
    importing.add_argument(
        "--beside",
        type=_directory,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="a guide that this one builds on",
    )
    importing.set_defaults(run=_import_rules)


def _serve(given: argparse.Namespace) -> int:
    settings = load(given.settings)
    if given.print_settings:
        sys.stdout.write(printable(settings))
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOADING)  # until `serve` listens to it: unheard, it ends the process
    rules = load_rules(settings)
    start_logs(settings.log_level)
    _settle_memory()
    sys.setswitchinterval(SWITCH)
    uvloop.run(serve(settings, rules))
    return 0


def _settle_memory() -> None:
    """Keep the collector from walking rules and models again and again while thousands of entries are made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def _check(given: argparse.Namespace) -> int:
    settings = load(given.settings)
    book = load_rules(settings)
    failed = False
    for checked in _checked(given, book, settings):
        sys.stdout.write(f"{checked.as_line(given.output)}\n")
        failed |= not checked.passed
    return 1 if failed else 0


def _checked(given: argparse.Namespace, book: RuleBook, settings: Settings) -> Iterator[Checked]:
    if given.dialect:
        yield from check_resources({name: _content(name) for name in given.files}, book, given.dialect, settings)
        return
    for name in given.files:
        yield from check_file(name, _content(name), book, settings)


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise SettingsError(f"can't read {name}: {error.strerror}") from None


def _directory(text: str) -> Path:
    """Take a directory; a misspelt one would hold no rule, and so no fault."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return Path(text)


def _guide(text: str) -> Path:
    """Take a guide's package or directory."""
    path = Path(text)
    return path if path.is_file() else _directory(text)


def _list_rules(given: argparse.Namespace) -> int:
    text = list_profile(load_rules(load()), given.profile)
    sys.stdout.write(f"{text or f'no profile {given.profile}; without a name all are listed'}\n")
    return 0 if text else 1


def _lint_rules(given: argparse.Namespace) -> int:
    faults = lint([shipped_rules(), *given.directories])
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def _test_rules(given: argparse.Namespace) -> int:
    report = run_samples(shipped_rules(), *given.directories)
    if report.coverages:
        sys.stdout.write(f"{report.table()}\n\n")
    sys.stdout.writelines(f"{failure}\n" for failure in report.failures)
    sys.stdout.write(f"{report.samples} samples, {len(report.failures)} failures\n")
    return 1 if report.failures else 0


def _import_rules(given: argparse.Namespace) -> int:
    written = import_guide(given.guide, given.dialect, given.out, rules=shipped_rules(), beside=given.beside)
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0


def _demo(given: argparse.Namespace) -> int:
    if given.print_submission:
        print_submission()
    else:
        asyncio.run(demo(serve=given.serve))
    return 0
