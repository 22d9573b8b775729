"""Check single resources, one JSON line each, against a profile: `cgm-proxy check` on NDJSON.

A line is `{"id", "profile", "resource"}`, with `"context"` (a list of resources that references may mean) and `"dialect"`
(which version a canonical means that two dialects share; `canonical|version` says the same) where they are wanted.
"""

from dataclasses import dataclass
from typing import Any

from cgm_proxy.core.codec.bodies import sniff, unreadable
from cgm_proxy.core.codec.json_body import encode, parse_json
from cgm_proxy.core.issues import Issue, RequestRefused
from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.r4.reference_scope import resolver_among
from cgm_proxy.core.rules.rulebook import RuleBook


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on one line."""

    id: Any
    issues: tuple[Issue, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing refuses the resource; warnings do not."""
        return not any(issue.refuses for issue in self.issues)

    def as_json(self) -> JsonObject:
        """Give the verdict as a line of the output."""
        errors = [{"rule": i.rule, "path": i.expression, "message": i.text} for i in self.issues if i.refuses]
        return {"id": self.id, "verdict": "pass" if self.passed else "fail", "errors": errors}

    def as_line(self, output: str) -> str:
        """Give the verdict as NDJSON or as text: one line, and one more for each issue."""
        if output == "ndjson":
            return encode(self.as_json()).decode()
        told = "".join(f"\n  {i.severity} {i.expression or ''} {i.text} [{i.rule}]" for i in self.issues)
        return f"{'pass' if self.passed else 'FAIL'} {self.id}{told}"


def check_line(line: bytes, book: RuleBook) -> Checked:
    """Judge one line; a line that cannot be read fails like any other."""
    try:
        if sniff(line) != "json":
            raise unreadable()
        asked = parse_json(line)
    except RequestRefused as refusal:
        return Checked(None, refusal.issues)
    resource, profile, dialect = asked.get("resource"), asked.get("profile"), asked.get("dialect")
    if not isinstance(resource, dict):
        return Checked(asked.get("id"), (Issue("r4-json", "the resource is no JSON object; R4 requires { … }"),))
    if not isinstance(profile, str) or book.profile(profile, dialect if isinstance(dialect, str) else None) is None:
        issue = Issue("unknown-profile", f"the profile {str(profile)[:100]} is not known; see `cgm-proxy rules list`")
        return Checked(asked.get("id"), (issue,))
    resolve = resolver_among(objects(asked.get("context")))
    of = dialect if isinstance(dialect, str) else None
    return Checked(asked.get("id"), book.examine(resource, [profile], resolve, dialect=of))
