"""YAML is read strictly: values with their lines, and a fault in words for whatever another reader could misread."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cgm_proxy.core.codec.strict_yaml import Fault, YamlError, document, documents

VALUES = {
    "text": ("a: b", {"a": "b"}),
    "JSON's types": ("[1, -2.5, true, null, '1', x]", [1, -2.5, True, None, "1", "x"]),
    "a date stays text": ("at: 2025-09-01", {"at": "2025-09-01"}),
    "an impossible date stays text": ("at: 2025-99-99", {"at": "2025-99-99"}),
    "an equals sign": ("a: =", {"a": "="}),
    "empty": ("", None),
    "a comment": ("# nothing", None),
    "quotes": ("{a: \"1\", 'b': '2'}", {"a": "1", "b": "2"}),
    "a tag of JSON's types": ("{a: !!str 1, b: ! 2, c: !!map {}}", {"a": "1", "b": "2", "c": {}}),
    "an alias": ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
    "an alias as a key": ("a: &x b\n*x : 1", {"a": "b", "b": 1}),
    "an anchor that is used anew": ("[&x 1, *x, &x 2, *x]", [1, 1, 2, 2]),
    "merged mappings": ("a: &x {b: 1, c: 1}\nd: {<<: *x, c: 2}", {"a": {"b": 1, "c": 1}, "d": {"b": 1, "c": 2}}),
    "merged lists of mappings": ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}),
    "block text": ("a: >-\n  b\n  c\n", {"a": "b c"}),
    "a byte order mark": ("\ufeffa: 1", {"a": 1}),
}

FAULTS = {
    "a key twice": ("a: 1\nb: 1\na: 2", ("a",), 3, "the key `a` is repeated (first on line 1); keep one"),
    "a key twice, once in quotes": (
        "{1: a,\n '1': b}",
        ("1",),
        2,
        "the key `1` is repeated (first on line 1); keep one",
    ),
    "two keys that are equal": ("1: a\ntrue: b", (True,), 2, "the key `true` is repeated (first on line 1); keep one"),
    "a key that is a mapping": ("a:\n  ? {b: 1}\n  : c", ("a",), 2, "a key must be text, not a list or mapping"),
    "a key that is an alias of a list": (
        "a: &x [1]\nb:\n  *x : 1",
        ("b",),
        3,
        "a key must be text, not a list or mapping",
    ),
    "a tag": ("a: [1, !x 2]", ("a", 1), 1, "the tag `!x` is not supported; leave it out"),
    "a tag of a collection": (
        "a: !!set {b}",
        ("a",),
        1,
        "the tag `tag:yaml.org,2002:set` is not supported; leave it out",
    ),
    "a number that is none": ("a: !!int b", ("a",), 1, "not a value of the tag `tag:yaml.org,2002:int`: `b`"),
    "an empty number": ("a: !!int ''", ("a",), 1, "not a value of the tag `tag:yaml.org,2002:int`: ``"),
    "a long number": (
        f"a:\n- {'9' * 5000}",
        ("a", 0),
        2,
        "a number of 5,000 characters; write it in quotes if it is text",
    ),
    "an alias inside what it names": (
        "a: &x\n  b: [*x]",
        ("a", "b", 0),
        2,
        "the alias `*x` stands inside what it names",
    ),
    "a merge of a list of what is no mapping": (
        "a:\n  <<: [{b: 1}, 1]",
        ("a",),
        2,
        "`<<` merges mappings, and this is none",
    ),
    "a merge of what is no mapping": ("{a: {<<: 1}}", ("a",), 1, "`<<` merges mappings, and this is none"),
}

ERRORS = {
    "an open list": ("a: [", 2, "did not find expected node content"),
    "an unknown alias": ("a: 1\nb: *x", 2, "found undefined alias `x`"),
    "endless nesting": ("a: " + "[" * 200_000, 1, "nested deeper than 200"),
    "endless nesting of keys": ("? " * 200_000, 1, "nested deeper than 200"),
    "a control character": ("a: 1\nb: \x07", 2, "a character that YAML does not allow, or a byte that is no UTF-8"),
    "no UTF-8": (b"a: 1\nb: \xff", 2, "a character that YAML does not allow, or a byte that is no UTF-8"),
    "half of a surrogate pair": ("a: 1\nb: \ud800", 2, "half of a surrogate pair"),
}


@pytest.mark.parametrize(("text", "value"), VALUES.values(), ids=VALUES)
def test_values_are_those_of_json(text: str, value: object) -> None:
    for source in (text, text.encode()):
        read = document(source)
        assert (read.value, read.faults) == (value, [])


@pytest.mark.parametrize(("text", "path", "line", "problem"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_path_and_line(text: str, path: tuple[object, ...], line: int, problem: str) -> None:
    assert document(text).faults == [Fault(path, line, problem)]


@pytest.mark.parametrize(("source", "line", "problem"), ERRORS.values(), ids=ERRORS)
def test_a_file_that_is_no_yaml_raises_with_its_line(source: str | bytes, line: int, problem: str) -> None:
    with pytest.raises(YamlError) as raised:
        document(source)
    assert (raised.value.line, raised.value.problem) == (line, problem)


def test_of_a_repeated_key_the_first_value_stays() -> None:
    assert document("a: 1\na: 2").value == {"a": 1}


def test_the_line_of_a_path_is_that_of_its_key_or_item() -> None:
    read = document("a: 1\nb:\n- c\n- d: 1\n  e: 2\n")
    found = [
        read.line(*path) for path in ((), ("a",), ("b",), ("b", 0), ("b", 1), ("b", 1, "e"), ("b", 1, "z"), ("z",))
    ]
    assert found == [1, 1, 2, 3, 4, 5, 4, 1]


def test_documents_come_one_by_one() -> None:
    stream = documents("a: 1\n---\nb: 2\n---\nc: [")
    assert [(read.value, read.first_line) for read in (next(stream), next(stream))] == [({"a": 1}, 1), ({"b": 2}, 2)]
    with pytest.raises(YamlError):
        next(stream)


def test_a_second_document_is_refused_where_one_is_expected() -> None:
    with pytest.raises(YamlError) as raised:
        document("a: 1\n---\nb: 2\n")
    assert (raised.value.line, raised.value.problem) == (2, "a second document begins here; keep one")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20)
)


@pytest.mark.parametrize(
    "text", [BOMB, BOMB + "? *a9\n: 1\n", "? " + "[[*x]]" + BOMB], ids=["values", "a key", "inside a key"]
)
def test_aliases_that_stand_for_millions_of_values_are_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(YamlError):
        document(text)
    assert time.process_time() - began < 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    )
)
def test_what_pyyaml_writes_is_read_as_the_same_value(value: object) -> None:
    read = document(yaml.safe_dump(value))
    assert (read.value, read.faults) == (value, [])
