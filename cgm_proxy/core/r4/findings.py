"""What the validation of a resource finds: issues, and the nodes that later checks look at."""

from dataclasses import dataclass, field

from cgm_proxy.core.issues import MOST_ISSUES, Issue
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.r4.model import Invariant, Type

#: A fault in a node: its rule, its path below the node ("" for the node itself), and the message that follows the path.
Fault = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """An object in a resource: a resource, an element with elements of its own, or the companion of a primitive (`_name`)."""

    path: str
    data: JsonObject
    type: Type
    resource: JsonObject
    """The resource that it belongs to."""
    parent: str | None = None
    """The element that it is a value of: `Observation.component`; None for the outermost resource."""
    modifier: bool = False
    """Whether it is a modifier extension."""
    contexts: frozenset[str] = frozenset()
    """The names of the element that an extension belongs to (`extensions.contexts_of`)."""


@dataclass(slots=True)
class Findings:
    """The issues of a resource, and the nodes that later checks (invariants, extensions, profiles) look at."""

    issues: list[Issue] = field(default_factory=list)
    invariants: list[tuple[Node, Invariant]] = field(default_factory=list)
    extensions: list[Node] = field(default_factory=list)
    resources: list[Node] = field(default_factory=list)

    def add(self, rule: str, path: str, text: str) -> None:
        """Add an error at a path; `text` is the whole message. One more than `MOST_ISSUES` are kept."""
        if len(self.issues) <= MOST_ISSUES:
            self.issues.append(Issue(rule, text, path))

    def add_fault(self, node_path: str, fault: Fault) -> None:
        """Add a fault of the node at a path."""
        rule, below, text = fault
        path = f"{node_path}.{below}" if below else node_path
        self.add(rule, path, f"{relative_path(path)} {text}")


def relative_path(path: str) -> str:
    """Return a path without its resource type, as messages begin: `component[1].code`."""
    return path.partition(".")[2] or path
