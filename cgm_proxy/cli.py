"""The commands: serve, demo, check, rules."""

import argparse
import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from cgm_proxy import __version__
from cgm_proxy.app import load_rules, serve
from cgm_proxy.core.rules import RulesError
from cgm_proxy.demo import demo, print_submission
from cgm_proxy.logs import start as start_logs
from cgm_proxy.settings import load, printable
from cgm_proxy.settings_keys import SettingsError


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
    return top


def _serve(given: argparse.Namespace) -> int:
    settings = load(given.settings)
    if given.print_settings:
        sys.stdout.write(printable(settings))
        return 0
    rules = load_rules(settings)
    start_logs(settings.log_level)
    _settle_memory()
    uvloop.run(serve(settings, rules))
    return 0


def _settle_memory() -> None:
    """Keep the collector from walking rules and models again and again while thousands of entries are made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def _demo(given: argparse.Namespace) -> int:
    if given.print_submission:
        print_submission()
    else:
        asyncio.run(demo(serve=given.serve))
    return 0
