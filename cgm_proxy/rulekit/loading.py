"""All reading of rule files: which files there are, their documents, and the `RuleBook` that is built from them.

`core` parses documents and judges resources, but opens no file. A directory of rules has one YAML file a profile
(`core/rules/rule_files.py` describes it) and may have `codes.ndjson`, the code systems and value sets of its guide. The
shipped rules have one directory a guide, and `r4/` with the definitions of FHIR R4.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from cgm_proxy.core.codec.strict_yaml import Document, YamlError, documents
from cgm_proxy.core.r4.model import Model
from cgm_proxy.core.rules.rule_files import Addition, Profile, RulesError, Source, merge, parse_rule_file
from cgm_proxy.core.rules.rulebook import RuleBook
from cgm_proxy.regular_files import read_regular


@dataclass(frozen=True)
class RuleFile:
    """A rule file: its first document has the rules, its second one the samples. Each is read when it is needed."""

    path: Path

    @cached_property
    def content(self) -> bytes:
        """The bytes of the file; raises RulesError if it can't be read."""
        return _read(self.path)

    @cached_property
    def rules(self) -> Source:
        """The first document; raises RulesError."""
        return self._document(0)

    @cached_property
    def samples(self) -> Source:
        """The second document, empty if there is none; raises RulesError."""
        return self._document(1)

    @cached_property
    def parsed(self) -> Profile | Addition:
        """The profile or addition in the first document; raises RulesError."""
        return parse_rule_file(self.rules)

    def _document(self, number: int) -> Source:
        try:
            found = next(islice(documents(self.content), number, None), None)
        except YamlError as error:
            at = f"{self.path}:{error.line}" if error.line else str(self.path)
            raise RulesError(f"{at}: not valid YAML: {error.problem}") from error
        return Source(str(self.path), found or Document())


def shipped_rules() -> Path:
    """Return the directory of the rules that come with the program: inside an installed package, otherwise beside it."""
    package = Path(__file__).parents[1]
    installed = package / "rules"
    return installed if installed.is_dir() else package.parent / "rules"


def r4_model(directory: Path | None = None) -> Model:
    """Return the definitions of FHIR R4; `directory` has the shipped rules."""
    shipped = directory or shipped_rules()
    if not (shipped / "r4" / "types.ndjson").exists():
        raise RulesError(f"{shipped}: has no r4/types.ndjson; name the shipped rules first")
    content = {name: _read(shipped / "r4" / f"{name}.ndjson") for name in ("types", "extensions", "codes", "common")}
    return Model(**content)


def rule_files(directory: Path) -> Iterator[RuleFile]:
    """Yield the rule files of a directory in order; raise RulesError if it has none.

    Hidden files are skipped: a volume of Kubernetes has each file a second time below `..data`.
    """
    found = [path for path in directory.rglob("*.y*ml") if path.suffix in {".yaml", ".yml"}]
    paths = [path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts)]
    if not paths:
        raise RulesError(f"{directory}: has no rules; name a directory that has files *.yaml")
    for path in sorted(paths):
        yield RuleFile(path)


def rule_book(shipped: Path | None = None, *own: Path) -> RuleBook:
    """Return the shipped rules together with a hospital's own; raise RulesError with the first problem."""
    shipped = shipped or shipped_rules()
    model = r4_model(shipped)
    return book_of(model, (file for directory in (shipped, *own) for file in rule_files(directory)))


def book_of(model: Model, files: Iterable[RuleFile]) -> RuleBook:
    """Return the rules of files that were read; raise RulesError with the first problem."""
    profiles: dict[tuple[str, str], Profile] = {}
    additions: list[Addition] = []
    codes: dict[str, dict[Path, bytes]] = {}
    for file in files:
        parsed = file.parsed
        if isinstance(parsed, Addition):
            additions.append(parsed)
            continue
        other = profiles.setdefault((parsed.url, parsed.dialect), parsed)
        if other is not parsed:
            at = file.rules.at("profile")
            raise RulesError(f"{at}: `profile`: exists already in {other.file}; add to that one by `extends`")
        beside = file.path.with_name("codes.ndjson")
        known = codes.setdefault(parsed.dialect, {})
        if beside not in known and beside.exists():
            known[beside] = _read(beside)
    merged = merge(profiles.values(), additions)
    return RuleBook(model, merged, {dialect: list(contents.values()) for dialect, contents in codes.items()})


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise RulesError(f"{path}: can't be read: {error.strerror}") from error
