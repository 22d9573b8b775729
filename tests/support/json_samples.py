"""JSON that a strict reader must refuse, and strategies that write any JSON value."""

import json

from hypothesis import strategies as st

BOM = b"\xef\xbb\xbf"


MALFORMED = {
    "not an object: array": b'[{"a":1}]',
    "cut short": b'{"a":1',
    "bytes after the end": b'{"a":1}x',
    "two documents": b'{"a":1}{"a":1}',
    "a null byte after the end": b'{"a":1}\x00',
    "a trailing comma": b'{"a":1,}',
    "a comma alone": b"{,}",
    "single quotes": b"{'a':1}",
    "a comment": b'{"a":1/**/}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "minus Infinity": b'{"a":-Infinity}',
    "a leading zero": b'{"a":01}',
    "a leading plus": b'{"a":+1}',
    "no digit before the point": b'{"a":.5}',
    "no digit after the point": b'{"a":1.}',
    "no digit in the exponent": b'{"a":1e}',
    "a hexadecimal number": b'{"a":0x10}',
    "a raw control character": b'{"a":"\x01"}',
    "an unknown escape": b'{"a":"\\x41"}',
    "a high surrogate alone": b'{"a":"\\ud800"}',
    "a low surrogate alone": b'{"a":"\\udc00"}',
    "a surrogate before a letter": b'{"a":"\\ud800\\u0041"}',
    "two high surrogates": b'{"a":"\\ud800\\ud800"}',
    "a surrogate in a name": b'{"\\ud800":1}',
    "a surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "no UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xae"}',
    "Latin-1": '{"a":"ä"}'.encode("latin-1"),
    "UTF-16 without a mark": '{"a":1}'.encode("utf-16-le"),
    "a byte order mark inside": b'{"a":' + BOM + b"1}",
    "two byte order marks": BOM + BOM + b'{"a":1}',
    "a number of 10,000 digits": b'{"a":' + b"9" * 10_000 + b"}",
    "an exponent beyond all": b'{"a":1e99999999999999999999}',
    "an exponent below all": b'{"a":-1e-99999999999999999999}',
    "zero with an exponent beyond all": b'{"a":0.0e99999999999999999999}',
}


DUPLICATES = {
    "at the top": b'{"a":1,"a":1}',
    "in an object": b'{"x":{"a":1,"b":2,"a":3}}',
    "in a list": b'{"x":[{"a":1},{"a":1,"a":2}]}',
    "empty names": b'{"":1,"":2}',
    "spelled with an escape": b'{"a":1,"\\u0061":2}',
    "both spelled with escapes": b'{"\\u0061":1,"\\u0061":2}',
    "a slash escaped": b'{"a/b":1,"a\\/b":2}',
    "a pair of surrogates": b'{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":2}',
    "a colon escaped in a value makes up for one": b'{"a":"\\u003a","a":"x"}',
    "a colon escaped in the lost value": b'{"a":"\\u003A","a":":"}',
    "colons in strings": b'{"a":"::","a":":"}',
    "an object is lost": b'{"a":{"b":1,"c":2},"a":1}',
    "white space": b'{ "a" : 1 ,\n"a"\t:1}',
    "deep": b'{"x":' * 50 + b'{"a":1,"a":1}' + b"}" * 50,
}


NAMES = st.sampled_from(["a", "b", ":", "a:", '"', "\\", "ä", "", "é😀", "\n"])


STRINGS = st.text(':"\\{}[],aä😀\n/', max_size=5)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """Write a string as JSON, with some of its characters escaped."""
    written = []
    for character in text:
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        written.append(draw(st.sampled_from([plain, plain, json.dumps(character)[1:-1], escaped(character)])))
    return f'"{"".join(written)}"'


def escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02X}" for at in range(0, len(units), 2))


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """Write any JSON value, with white space, escapes and duplicate names."""
    space = draw(st.sampled_from(["", "", " ", "\n\t"]))
    kind = draw(st.sampled_from(["object", "list", "string", "number"] if depth else ["string", "number"]))
    if kind == "number":
        return draw(st.sampled_from(["1", "1.50", "-0.0", "true", "null"])) + space
    if kind == "string":
        return draw(spelled(draw(STRINGS)))
    if kind == "list":
        return f"[{space}" + f",{space}".join(draw(st.lists(texts(depth - 1), max_size=3))) + "]"
    members = [
        f"{draw(spelled(draw(NAMES)))}{space}:{space}{draw(texts(depth - 1))}" for _ in range(draw(st.integers(0, 3)))
    ]
    return "{" + f"{space},{space}".join(members) + "}"
