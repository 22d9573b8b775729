"""The command line: parses the arguments and runs a command of `commands/`.

`--help` and `--version` must be quick, so nothing is imported here but argparse. Each command imports what it needs when it runs.
"""

import argparse
import os
import sys

from cgm_proxy import __version__

TYPE_CHECKING = False  # `typing` takes as long to import as the rest of this module
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run a command and return its exit status; it is 2 if arguments, settings or rules are faulty."""
    options = parser().parse_args(arguments)

    from cgm_proxy.core.rules.rule_files import RulesError
    from cgm_proxy.settings.schema import SettingsError

    try:
        status: int = options.run(options)
    except (SettingsError, RulesError) as error:
        sys.stderr.write(f"cgm-proxy: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has stopped reading
        sys.stdout = None
        return 0
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser; the attribute `run` of what it parses is the function that runs the command."""
    top = _Parser(prog="cgm-proxy", description="Receive CGM data in front of any FHIR R4 server.")
    top.add_argument("--version", action="version", version=f"cgm-proxy {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the proxy")
    serve.add_argument(
        "--settings", type=_path, metavar="FILE", help="YAML settings (default: the file that CGM_PROXY_SETTINGS names)"
    )
    serve.add_argument("--print-settings", action="store_true", help="print all settings, secrets masked, and exit")
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="show what the proxy does, with an embedded FHIR store behind it")
    demo.add_argument("--serve", action="store_true", help="keep the proxy running afterwards")
    demo.add_argument("--print-submission", action="store_true", help="print a small submission and exit")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="judge files as the proxy would judge them in a submission")
    check.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="Bundles or resources in JSON, XML or NDJSON; - is standard input",
    )
    check.add_argument("--output", choices=("text", "ndjson"), default="text", help="format of the verdicts")
    check.add_argument(
        "--dialect",
        choices=_Dialects(),
        metavar="DIALECT",
        help="judge each file as a single resource, by the profiles of this version of the guide (%(choices)s); the resources "
        "may refer to one another",
    )
    check.add_argument(
        "--settings", type=_path, metavar="FILE", help="YAML settings with own rules, limits and policies"
    )
    check.set_defaults(run=_check)

    rules = commands.add_parser("rules", help="list, lint, test and import rules")
    actions = rules.add_subparsers(required=True, metavar="ACTION")
    list_ = actions.add_parser("list", help="show the rules of a profile, or all profiles")
    list_.add_argument("profile", nargs="?", default="", help="a profile's name, DIALECT/NAME or canonical URL")
    list_.set_defaults(run=_list_rules)
    lint = actions.add_parser("lint", help="find mistakes in rules")
    lint.set_defaults(run=_lint_rules)
    test = actions.add_parser("test", help="run the samples of rules")
    test.set_defaults(run=_test_rules)
    for action in (lint, test):
        action.add_argument(
            "directories",
            nargs="*",
            type=_directory,
            metavar="DIRECTORY",
            help="a hospital's own rules, which are read together with the shipped ones (default: the shipped rules alone)",
        )
    import_ = actions.add_parser("import", help="compile the StructureDefinitions of a guide into rules")
    import_.add_argument("guide", type=_guide, help="the guide's package (.tgz), or the directory of its JSON files")
    import_.add_argument("--dialect", required=True, help="name of this version of the guide")
    import_.add_argument("--out", type=_path, required=True, metavar="DIRECTORY", help="where the rules are written")
    import_.add_argument(
        "--beside",
        type=_directory,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="JSON files of a guide that this one builds on, such as US Core; may be repeated",
    )
    import_.set_defaults(run=_import_rules)
    return top


class _Parser(argparse.ArgumentParser):
    """A parser, also of a subcommand, that formats help for the width of the terminal.

    To find out the width, argparse itself would import shutil and with it three compression libraries.
    """

    def __init__(self, **options: "Any") -> None:
        super().__init__(formatter_class=_format_help, **options)


def _format_help(prog: str) -> argparse.HelpFormatter:
    try:
        width = os.get_terminal_size().columns
    except OSError:  # the output is no terminal
        width = 100
    return argparse.HelpFormatter(prog, width=width - 2)


class _Dialects:
    """The ids of the guide's versions, which argparse imports only when it needs them."""

    def __iter__(self) -> "Iterator[str]":
        from cgm_proxy.core.submission.dialects import DIALECTS_BY_ID

        return iter(DIALECTS_BY_ID)


def _path(text: str) -> "Path":
    from pathlib import Path

    return Path(text)


def _directory(text: str) -> "Path":
    """Return an existing directory; a misspelt name would otherwise stand for a directory without rules or faults."""
    path = _path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return path


def _guide(text: str) -> "Path":
    path = _path(text)
    return path if path.is_file() else _directory(text)


def _serve(options: argparse.Namespace) -> int:
    from cgm_proxy.settings.loading import load, printable

    settings = load(options.settings)
    if options.print_settings:
        sys.stdout.write(printable(settings))
        return 0

    from cgm_proxy.commands.serve import run

    run(settings)
    return 0


def _demo(options: argparse.Namespace) -> int:
    if options.print_submission:
        from cgm_proxy.commands.demo import print_submission

        print_submission()
        return 0

    import asyncio

    from cgm_proxy.commands.demo import demo

    asyncio.run(demo(serve=options.serve))
    return 0


def _check(options: argparse.Namespace) -> int:
    from cgm_proxy.commands.check import run
    from cgm_proxy.settings.loading import load

    return run(options.files, load(options.settings), dialect=options.dialect, output=options.output)


def _list_rules(options: argparse.Namespace) -> int:
    from cgm_proxy.commands.rules import list_rules

    return list_rules(options.profile)


def _lint_rules(options: argparse.Namespace) -> int:
    from cgm_proxy.commands.rules import lint_rules

    return lint_rules(options.directories)


def _test_rules(options: argparse.Namespace) -> int:
    from cgm_proxy.commands.rules import run_rule_samples

    return run_rule_samples(options.directories)


def _import_rules(options: argparse.Namespace) -> int:
    from cgm_proxy.commands.rules import import_rules

    return import_rules(options.guide, options.dialect, options.out, options.beside)
