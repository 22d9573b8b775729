"""What became of an accepted entry: stored, refused, or passed through in observe mode."""

from dataclasses import dataclass

import msgspec

from cgm_proxy.core.issues import Issue
from cgm_proxy.core.json_values import JsonObject


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Where an entry is stored: `Observation/7/_history/1` and, if the server said it, its ETag."""

    location: str
    etag: str | None = None
    created: bool = False
    """Whether this submission created it."""
    resource: JsonObject | None = None
    """The stored resource, if the submitter asked for its representation."""

    @property
    def reference(self) -> str:
        """The location without its version, as a reference."""
        return self.location.partition("/_history/")[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an entry was not stored; `status` is the status of its response."""

    status: int
    issues: tuple[Issue, ...]
    authenticate: str | None = None
    """The `WWW-Authenticate` header field of a 401."""


@dataclass(frozen=True, slots=True)
class PassedThrough:
    """The upstream's own response to an entry that was sent as the submitter wrote it (observe mode)."""

    status: int
    entry: JsonObject


Outcome = Stored | Refused | PassedThrough


def refused(status: int, rule: str, text: str, expression: str | None = None, *, code: str) -> Refused:
    """Return a refusal with one issue; `code` is its FHIR issue type."""
    return Refused(status, (Issue(rule, text, expression, code=code),))


#: The server may or may not have stored the entry.
UNKNOWN = refused(
    503, "fate-unknown", "the server did not confirm the entry; send it again, which is safe", code="transient"
)
