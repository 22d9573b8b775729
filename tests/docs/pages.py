"""Read the documentation's pages: code blocks, headings with their anchors, links, and the paths that are named."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Everything that a reader of the project may open. The chart's README is the chart's own, and tested beside it.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w.\-]+(?:/[\w.\-]+)+/?|\w+/|\w+\.py")
#: What looks like a path and is none: references such as Patient/1, media types, scopes, rule ids, versions.
_NO_PATH = re.compile(r"\d|[A-Z][A-Za-z]+/|(?:application|text|patient|user|system|argo|cgm-[\w-]+)/")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: what stands behind the opening fence, and its text."""

    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return a page's fenced blocks."""
    return [
        Block(language.strip(), re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, text in _FENCE.findall(page)
    ]


def prose(page: str) -> str:
    """Return a page without its fenced blocks and comments."""
    return _COMMENT.sub("", _FENCE.sub("", page))


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in _HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        repeated = found.count(slug)
        found.append(slug)
        if repeated:
            found.append(f"{slug}-{repeated}")
    return set(found)


def links(page: str) -> list[str]:
    """Return the targets of a page's links and images."""
    return _LINK.findall(_CODE.sub("", prose(page)))


def paths(text: str) -> Iterator[str]:
    """Yield what stands in backticks and looks like a path of this project: it has a slash or ends in .py."""
    for code in _CODE.findall(text):
        if _PATH.fullmatch(code) and not _NO_PATH.match(code):
            yield code
