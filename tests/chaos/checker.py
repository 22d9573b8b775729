"""The comparison of what is stored with what was sent and answered. It has no I/O, so that tests can check each kind of fault."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chaos.content import Resolve, digits, key, references

from cgm_proxy.core.json_values import JsonObject

#: The kinds of violations, and what they mean.
KINDS = {
    "lost": "answered 200 or 201, but nothing is stored at the location",
    "stored twice": "several stored resources have the same content",
    "wrong location": "another resource is stored at the location in the response",
    "dangling reference": "a stored resource refers to one that is not stored",
    "half group": "only a part of a group is stored: a summary with its members and reports, or an atomic submission",
    "altered": "a stored resource differs from what was sent: digits, elements or profiles",
    "never sent": "a stored resource was not sent, or had to be refused",
    "wrongly accepted": "a faulty entry was answered 200 or 201",
    "wrongly refused": "a good entry was refused with a final status",
    "unanswered": "a good entry never got a final response",
}

#: Statuses after which a client sends an entry again. 500 is not among them: the proxy must never answer it.
RETRYABLE = frozenset({408, 424, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Entry:
    """An entry of a submission as it was sent; `where` describes its place for a human reader."""

    where: str
    resource: JsonObject
    resolve: Resolve
    faulty: bool = False

    @cached_property
    def key(self) -> str:
        return key(self.resource, self.resolve)

    @cached_property
    def whole(self) -> frozenset[str]:
        """The keys of the resources that must be stored together: itself, its members and its results."""
        parts = [self.resource.get("hasMember"), self.resource.get("result")]
        resources = [self.resolve(reference) for reference in references(parts)]
        return frozenset({self.key}).union(*(Entry("", part, self.resolve).whole for part in resources if part))

    @cached_property
    def digits(self) -> str:
        return digits(self.resource, self.resolve)


@dataclass(frozen=True)
class Submission:
    """A submission as it was posted. An atomic one must be stored whole or not at all."""

    name: str
    dialect: str
    bundle: JsonObject
    entries: Sequence[Entry]

    @property
    def atomic(self) -> bool:
        return self.dialect == "argo" and self.bundle["type"] == "transaction"

    @cached_property
    def groups(self) -> list[frozenset[str]]:
        """The groups of resources that must be stored together or not at all, each as the set of their keys."""
        good = [entry for entry in self.entries if not entry.faulty]
        if self.atomic:
            return [frozenset(entry.key for entry in good)]
        parts = frozenset().union(*(entry.whole - {entry.key} for entry in good))
        return [entry.whole for entry in good if entry.key not in parts]


@dataclass(frozen=True)
class EntryAnswer:
    """One response to an entry. `location` is `Type/id`, `reason` the text of the OperationOutcome."""

    entry: Entry
    status: int
    location: str | None = None
    reason: str = ""

    @property
    def stored(self) -> bool:
        return self.status in {200, 201}

    @property
    def final(self) -> bool:
        """Whether a client has no reason to send the entry again."""
        return self.status not in RETRYABLE


@dataclass(frozen=True)
class Violation:
    kind: str
    text: str


class Checker:
    """Finds the violations of one run.

    `held` and `before` are the resources that the store holds after and before the run, by `Type/id`. `abandoned` are the
    names of submissions that were not sent again although they had no final response.
    """

    def __init__(
        self,
        submissions: Sequence[Submission],
        answers: Sequence[EntryAnswer],
        held: Mapping[str, JsonObject],
        before: Mapping[str, JsonObject],
        abandoned: Collection[str] = (),
    ) -> None:
        self.submissions = submissions
        self.answers = answers
        self.held = held
        self.abandoned = abandoned
        self.resolve = {**before, **held}.get
        self.keys = {location: key(resource, self.resolve) for location, resource in held.items()}
        self.good = [e for submission in submissions for e in submission.entries if not e.faulty]

    def violations(self) -> list[Violation]:
        """Return all violations, in the order of `KINDS`."""
        found = [
            *self._answered(),
            *self._repeated(),
            *self._dangling(),
            *self._half_groups(),
            *self._altered(),
            *self._never_sent(),
            *self._unanswered(),
        ]
        return sorted(set(found), key=lambda violation: list(KINDS).index(violation.kind))

    def _answered(self) -> Iterator[Violation]:
        for answer in self.answers:
            text = f"{answer.entry.where} was answered {answer.status} {answer.location}: {answer.entry.key}"
            if answer.entry.faulty:
                if answer.stored:
                    yield Violation("wrongly accepted", text)
            elif answer.stored and answer.location not in self.held:
                yield Violation("lost", text)
            elif answer.stored and self.keys.get(answer.location) != answer.entry.key:
                yield Violation("wrong location", f"{text}, where {self.keys.get(answer.location)} is stored")
            elif answer.final and not answer.stored:
                yield Violation("wrongly refused", f"{text}: {answer.reason}")

    def _repeated(self) -> Iterator[Violation]:
        locations: dict[str, list[str]] = {}
        for location, content_key in self.keys.items():
            locations.setdefault(content_key, []).append(location)
        for content_key, same in locations.items():
            if len(same) > 1:
                yield Violation("stored twice", f"{' and '.join(same)} are {content_key}")

    def _dangling(self) -> Iterator[Violation]:
        for location, resource in self.held.items():
            for reference in references(resource):
                if self.resolve(reference) is None:
                    yield Violation("dangling reference", f"{location} refers to {reference}")

    def _half_groups(self) -> Iterator[Violation]:
        """Yield a violation for each stored resource that belongs to no completely stored group."""
        stored = set(self.keys.values())
        groups = {group for submission in self.submissions for group in submission.groups}
        sent = frozenset().union(*groups)
        whole = frozenset().union(*(group for group in groups if group <= stored))
        for location, content_key in self.keys.items():
            if content_key in sent - whole:
                yield Violation("half group", f"{location} is stored without the rest of its group: {content_key}")

    def _altered(self) -> Iterator[Violation]:
        sent: dict[str, set[str]] = {}
        for entry in self.good:
            sent.setdefault(entry.key, set()).add(entry.digits)
        for location, content_key in self.keys.items():
            stored = digits(self.held[location], self.resolve)
            if content_key in sent and stored not in sent[content_key]:
                yield Violation("altered", f"{location} is {stored}, but {' or '.join(sent[content_key])} was sent")

    def _never_sent(self) -> Iterator[Violation]:
        sent = {entry.key for entry in self.good}
        for location, content_key in self.keys.items():
            if content_key not in sent:
                yield Violation("never sent", f"{location}: {content_key}")

    def _unanswered(self) -> Iterator[Violation]:
        answered = {id(answer.entry) for answer in self.answers if answer.final}
        for submission in self.submissions:
            for entry in submission.entries if submission.name not in self.abandoned else ():
                if id(entry) not in answered and not entry.faulty:
                    yield Violation("unanswered", f"{entry.where}: {entry.key}")
