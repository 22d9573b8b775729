"""Every metric, setting, option, rule id and log event of 0.1.0 is still there, or the change is listed here with its reason."""

import json
from pathlib import Path

import pytest
from docs.inventory import Inventory, inventory, literals
from support.places import ROOT

BEFORE: Inventory = json.loads(Path(__file__).with_name("inventory-0.1.0.json").read_text())

#: What has changed on purpose, by section and name, with the reason. CHANGELOG.md names each of them as well.
CHANGED: dict[tuple[str, str], str] = {
    (
        "codes",
        "upstream-silent",
    ): "it is upstream-timeout, as it was for submissions: one table has the upstream's faults",
    (
        "codes",
        "upstream-broke-off",
    ): "it is upstream-broken, as it was for submissions: one table has the upstream's faults",
}


@pytest.fixture(scope="module")
def today() -> Inventory:
    return inventory(ROOT)


@pytest.mark.parametrize("section", [section for section in BEFORE if section != "codes"])
def test_what_a_user_relies_on_is_still_there(section: str, today: Inventory) -> None:
    """Additions are fine; a name that is missing, or that has lost one of its words, is a change."""
    changed = {
        name
        for name, words in BEFORE[section].items()
        if name not in today[section] or not set(words.split()) <= set(today[section][name].split())
    }
    assert changed == {name for listed, name in CHANGED if listed == section}


def test_every_rule_id_that_the_code_had_is_still_in_the_code() -> None:
    missing = BEFORE["codes"].keys() - literals(ROOT)
    assert missing == {name for listed, name in CHANGED if listed == "codes"}


def test_the_changelog_names_what_changed() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert [name for _, name in CHANGED if f"`{name}`" not in changelog] == []
