"""A strict reader of YAML files that people write: settings and rules.

`documents` parses a stream, `document` a file that must hold one document. Both return the values together with the lines
that they stand on. Stricter than YAML: each key stands once and is a scalar, only JSON's types are known (dates stay text),
nesting and numbers are bounded, and so is what aliases repeat. A file is read in one pass over the parser's events, so that
time and memory stay proportional to its size.

A syntax error raises `YamlError`. Whatever spoils only one key or value is a `Fault` of the document, so that a caller can
report all of them at once; such a value reads as None.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

#: A place in a document: keys of mappings and indexes of lists.
Path = tuple[Any, ...]

#: Deepest nesting that is read; a FHIR resource nests to about 20.
MAX_DEPTH = 200
#: Longest number (characters): a longer one is an identifier whose quotes were forgotten.
MAX_NUMBER = 100
#: How many values the aliases of one document may repeat: ten lines of aliases can stand for 10^10 values.
MAX_REPEATED = 100_000
#: How many faults of one document are kept: nobody reads more of them at once.
MAX_FAULTS = 1_000

_PREFIX = "tag:yaml.org,2002:"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_SCALARS = {
    _PREFIX + "null": _CONSTRUCTOR.construct_yaml_null,
    _PREFIX + "bool": _CONSTRUCTOR.construct_yaml_bool,
    _PREFIX + "int": _CONSTRUCTOR.construct_yaml_int,
    _PREFIX + "float": _CONSTRUCTOR.construct_yaml_float,
    _PREFIX + "str": _CONSTRUCTOR.construct_yaml_str,
}
#: What a plain scalar is, by its first character; whatever matches nothing is text.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in known if tag in _SCALARS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_COLLECTIONS = {None, "!", _PREFIX + "map", _PREFIX + "seq"}
#: Stand for a key that comes next, one whose pair is dropped, and YAML's `<<`.
_NO_KEY: Any = object()
_DROPPED: Any = object()
_MERGE: Any = object()


class YamlError(ValueError):
    """A file that is not valid YAML: `problem` in words, with parts of the file in backticks, and the `line` (from 1), if known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


@dataclass(frozen=True, slots=True)
class Fault:
    """One key or value that can't be used: where it is, its line (from 1), and what is wrong."""

    path: Path
    line: int
    problem: str


@dataclass(slots=True)
class Document:
    """A YAML document: its value (None if it is empty), the faults in it, and its first line."""

    value: Any = None
    faults: list[Fault] = field(default_factory=list)
    first_line: int = 1
    #: The lines of a mapping's keys or a list's items, by the id of the mapping or list.
    _lines: dict[int, Any] = field(default_factory=dict)

    def line(self, *path: Any) -> int:
        """Return the line (from 1) of a path's key or item, or of the deepest part of the path that the document has."""
        value, line = self.value, self.first_line
        for step in path:
            try:
                line, value = self._lines[id(value)][step], value[step]
            except (KeyError, IndexError, TypeError):
                break
        return line


def document(source: bytes | str, *, max_depth: int = MAX_DEPTH) -> Document:
    """Read a file that must hold one document; raise YamlError where it can't be parsed or holds more."""
    first, *others = documents(source, max_depth=max_depth)
    if others:
        raise YamlError("a second document begins here; keep one", others[0].first_line)
    return first


def documents(source: bytes | str, *, max_depth: int = MAX_DEPTH) -> Iterator[Document]:
    """Yield the documents of a stream, each as soon as it is parsed; raise YamlError where it can't be parsed.

    An empty stream has one empty document.
    """
    builder = None
    try:
        for event in yaml.parse(source, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                builder = _Builder(_line(event), max_depth)
            elif isinstance(event, yaml.DocumentEndEvent) and builder:
                yield builder.document
            elif builder:
                builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or "it can't be parsed", mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        problem = "a character that YAML does not allow, or a byte that is no UTF-8"
        raise YamlError(problem, _line_at(source, error.position)) from error
    except UnicodeEncodeError as error:
        raise YamlError("half of a surrogate pair", _line_at(source, error.start)) from error
    if builder is None:
        yield Document()


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _line_at(source: bytes | str, position: int) -> int:
    return source[:position].count(b"\n" if isinstance(source, bytes) else "\n") + 1  # type: ignore[arg-type]


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    value: Any
    lines: Any
    path: Path
    anchor: str | None
    size_before: int
    key: Any = _NO_KEY
    #: The keys as they are written: `1` and `"1"` are one key for a reader.
    written: dict[str, int] = field(default_factory=dict)
    #: The mappings, or lists of mappings, that are merged into this one at its end, each with its line.
    merged: list[tuple[Any, int]] = field(default_factory=list)


class _Builder:
    """Builds a document from the events of a parser."""

    def __init__(self, line: int, max_depth: int) -> None:
        self.document = Document(first_line=line)
        self._max_depth = max_depth
        self._open: list[_Open] = []
        #: The finished values that have an anchor, each with how many values it holds.
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._size = 0
        self._repeated = 0

    def take(self, event: Any) -> None:
        """Take the next event."""
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = value, 1
            self._put(value, event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.AliasEvent):
            self._put(self._aliased(event), event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()

    def _begin(self, event: Any) -> None:
        if len(self._open) == self._max_depth:
            raise YamlError(f"nested deeper than {self._max_depth}", _line(event))
        if event.tag not in _COLLECTIONS:
            self._fault(event, f"the tag `{event.tag}` is not supported; leave it out")
        path = self._path()
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        lines = type(value)()
        self._put(value, event)
        self.document._lines[id(value)] = lines  # noqa: SLF001 -- the builder fills it
        self._open.append(_Open(value, lines, path, event.anchor, self._size))

    def _end(self) -> None:
        ended = self._open.pop()
        for merged, line in ended.merged:
            for mapping in merged if isinstance(merged, list) else [merged]:
                if not isinstance(mapping, dict):
                    self._record(ended.path, line, "`<<` merges mappings, and this is none")
                    break
                for key, value in mapping.items():
                    ended.value.setdefault(key, value)
        if ended.anchor:
            self._anchors[ended.anchor] = ended.value, self._size - ended.size_before + 1

    def _aliased(self, event: Any) -> Any:
        if any(event.anchor == holder.anchor for holder in self._open):
            return self._fault(event, f"the alias `*{event.anchor}` stands inside what it names")
        if event.anchor not in self._anchors:
            raise YamlError(f"found undefined alias `{event.anchor}`", _line(event))
        value, size = self._anchors[event.anchor]
        self._size += size - 1
        self._repeated += size
        if self._repeated > MAX_REPEATED:
            raise YamlError(f"the aliases repeat more than {MAX_REPEATED:,} values", _line(event))
        return value

    def _put(self, value: Any, event: Any) -> None:
        """Put a value where it belongs: it is the document's, an item of a list, or a key or value of a mapping."""
        self._size += 1
        if not self._open:
            self.document.value = value
            return
        holder = self._open[-1]
        if isinstance(holder.value, list):
            holder.value.append(value)
            holder.lines.append(_line(event))
        elif holder.key is _NO_KEY:
            holder.key = self._key(holder, value, event)
        else:
            if holder.key is _MERGE:
                holder.merged.append((value, _line(event)))  # https://yaml.org/type/merge.html
            elif holder.key is not _DROPPED:
                holder.value[holder.key] = value
            holder.key = _NO_KEY

    def _key(self, holder: _Open, key: Any, event: Any) -> Any:
        """Return the key, or what stands for one that can't be used."""
        if isinstance(key, dict | list):
            self._fault(event, "a key must be text, not a list or mapping")
            return _DROPPED
        plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        written = str(getattr(event, "value", key))
        first = holder.written.get(written) or holder.lines.get(key)
        if first:
            self._fault(event, f"the key `{written}` is repeated (first on line {first}); keep one", key)
            return _DROPPED
        holder.written[written] = holder.lines[key] = _line(event)
        return _MERGE if plain and written == "<<" else key

    def _scalar(self, event: Any) -> Any:
        text, tag = event.value, event.tag
        if tag is None and event.implicit[0]:
            resolvers = _RESOLVERS.get(text[:1], ())
            tag = next((tag for tag, pattern in resolvers if pattern.match(text)), None)
        if tag is None or tag == "!":
            return text
        if tag not in _SCALARS:
            return self._fault(event, f"the tag `{tag}` is not supported; leave it out")
        if len(text) > MAX_NUMBER and tag != _PREFIX + "str":
            return self._fault(event, f"a number of {len(text):,} characters; write it in quotes if it is text")
        try:
            return _SCALARS[tag](yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError):  # `!!int x`, `!!bool x`, `!!int ''`
            return self._fault(event, f"not a value of the tag `{tag}`: `{text[:40]}`")

    def _path(self, key: Any = _NO_KEY) -> Path:
        """Return the path of the value that comes next, or of `key` in the innermost mapping."""
        if not self._open:
            return ()
        holder = self._open[-1]
        if isinstance(holder.value, list):
            return (*holder.path, len(holder.value))
        key = holder.key if key is _NO_KEY else key
        return holder.path if key in (_NO_KEY, _DROPPED, _MERGE) else (*holder.path, key)

    def _fault(self, event: Any, problem: str, key: Any = _NO_KEY) -> None:
        """Record a fault; return None, the value that stands for what can't be read."""
        self._record(self._path(key), _line(event), problem)

    def _record(self, path: Path, line: int, problem: str) -> None:
        if len(self.document.faults) < MAX_FAULTS:
            self.document.faults.append(Fault(path, line, problem))
