"""The README's tables are made from the code; `python tests/docs/test_docs.py` writes them anew."""

import re
import shlex
import sys
from collections.abc import Callable

import pytest
from support.places import ROOT

from cgm_proxy.cli import main, parser
from cgm_proxy.observability import metrics
from cgm_proxy.settings import loading

README = ROOT / "README.md"


def commands() -> str:
    """Give the commands' help as a table."""
    choices = [choice for action in parser()._subparsers._group_actions for choice in action._choices_actions]
    rows = [f"| `cgm-proxy {choice.dest}` | {choice.help} |" for choice in choices]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


#: The tables by the name between their markers.
TABLES: dict[str, Callable[[], str]] = {
    "settings": loading.table,
    "metrics": metrics.table,
    "commands": commands,
}


def marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: made by tests/docs/test_docs.py -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    for name, table in TABLES.items():
        made = table().strip().replace("\\", "\\\\")
        text = marked(name).sub(rf"\1\n{made}\n\n\2", text)
    return text


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_has_each_table_as_the_code_says_it(name: str) -> None:
    text = README.read_text()
    assert marked(name).search(text), f"README.md lacks the markers of {name}"
    assert marked(name).search(renewed(text))[0] == marked(name).search(text)[0], "run: python tests/docs/test_docs.py"


@pytest.mark.parametrize("line", re.findall(r"^\$ (cgm-proxy .+)$", README.read_text(), re.MULTILINE))
def test_every_command_that_the_readme_shows_can_be_parsed(line: str) -> None:
    command = shlex.split(line.partition("|")[0].partition("<")[0])[1:]
    if "--help" in command:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    else:
        assert parser().parse_args(command).run


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
    sys.exit()
