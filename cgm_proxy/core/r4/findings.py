"""What a walk over a resource finds: issues, and the nodes that later checks look at."""

from dataclasses import dataclass, field

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import Invariant, Type


@dataclass(frozen=True, slots=True)
class Node:
    """An object of the resource: where it is, its data, its type, the element it stands in and the resource around it."""

    path: str
    data: JsonObject
    type: Type
    resource: JsonObject
    parent: str | None = None
    modifier: bool = False
    places: frozenset[str] = frozenset()


@dataclass(slots=True)
class Findings:
    """What a walk found: issues, and the nodes that later checks (invariants, extensions, claims) look at."""

    issues: list[Issue] = field(default_factory=list)
    invariants: list[tuple[Node, Invariant]] = field(default_factory=list)
    extensions: list[Node] = field(default_factory=list)
    resources: list[Node] = field(default_factory=list)

    def add(self, rule: str, path: str, text: str) -> None:
        """Note an error at a path."""
        self.issues.append(Issue(rule, text, path))


def last(path: str) -> str:
    """Give the part of a path that a message begins with: without the resource type."""
    return path.partition(".")[2] or path
