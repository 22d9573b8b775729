"""Compare what a store holds with what was sent and answered. Pure: the tests give it stores with each kind of fault."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chaos.content import Resolve, digits, key, references

from cgm_proxy.core.json_values import JsonObject

#: What can be wrong, and what that means.
KINDS = {
    "lost": "answered 200 or 201, and nothing is at the location",
    "stored twice": "one content, several resources",
    "wrong location": "something else is at the location that was answered",
    "dangling reference": "a stored resource refers to what is not stored",
    "half group": "part of what belongs together is stored: a summary, its members and reports; an atomic submission",
    "altered": "what is stored is not what was sent: digits, elements, profiles",
    "never sent": "what is stored was not sent, or had to be refused",
    "wrongly accepted": "a faulty entry was answered 200 or 201",
    "wrongly refused": "a sound entry was refused for good",
    "unanswered": "a sound entry was not answered in the end",
}

#: Statuses for which a client sends an entry again. A 500 is none of them: it is never to be answered.
AGAIN = frozenset({408, 424, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Entry:
    """An entry of a submission, as it was sent; `where` tells a person which."""

    where: str
    resource: JsonObject
    resolve: Resolve
    faulty: bool = False

    @cached_property
    def key(self) -> str:
        return key(self.resource, self.resolve)

    @cached_property
    def whole(self) -> frozenset[str]:
        """The keys of what is stored with it or not at all: itself, and what it is made of."""
        made_of = [self.resource.get("hasMember"), self.resource.get("result")]
        parts = [self.resolve(reference) for reference in references(made_of)]
        return frozenset({self.key}).union(*(Entry("", part, self.resolve).whole for part in parts if part))

    @cached_property
    def digits(self) -> str:
        return digits(self.resource, self.resolve)


@dataclass(frozen=True)
class Submission:
    """What is posted at once; an `atomic` one is stored whole or not at all."""

    name: str
    dialect: str
    bundle: JsonObject
    entries: Sequence[Entry]

    @property
    def atomic(self) -> bool:
        return self.dialect == "argo" and self.bundle["type"] == "transaction"

    @cached_property
    def groups(self) -> list[frozenset[str]]:
        """The keys of what is stored together or not at all."""
        sound = [entry for entry in self.entries if not entry.faulty]
        if self.atomic:
            return [frozenset(entry.key for entry in sound)]
        parts = frozenset().union(*(entry.whole - {entry.key} for entry in sound))
        return [entry.whole for entry in sound if entry.key not in parts]


@dataclass(frozen=True)
class Answer:
    """What an entry was answered once; `location` is `Type/id`, `why` an OperationOutcome's words."""

    entry: Entry
    status: int
    location: str | None = None
    why: str = ""

    @property
    def stored(self) -> bool:
        return self.status in {200, 201}

    @property
    def final(self) -> bool:
        """Whether a client has no reason to send it again."""
        return self.status not in AGAIN


@dataclass(frozen=True)
class Violation:
    kind: str
    what: str


class Checker:
    """Judges one run.

    `held` is by `Type/id` what the store holds, `before` what it held before the run; `abandoned` are the names of
    submissions of which the submitters did not want to know the answer any more.
    """

    def __init__(
        self,
        submissions: Sequence[Submission],
        answers: Sequence[Answer],
        held: Mapping[str, JsonObject],
        before: Mapping[str, JsonObject],
        abandoned: Collection[str] = (),
    ) -> None:
        self.submissions = submissions
        self.answers = answers
        self.held = held
        self.abandoned = abandoned
        self.resolve = {**before, **held}.get
        self.keys = {place: key(resource, self.resolve) for place, resource in held.items()}
        self.sound = [e for submission in submissions for e in submission.entries if not e.faulty]

    def violations(self) -> list[Violation]:
        """Give all that is wrong, in the order of `KINDS`."""
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
            said = f"{answer.entry.where} was answered {answer.status} {answer.location}: {answer.entry.key}"
            if answer.entry.faulty:
                if answer.stored:
                    yield Violation("wrongly accepted", said)
            elif answer.stored and answer.location not in self.held:
                yield Violation("lost", said)
            elif answer.stored and self.keys.get(answer.location) != answer.entry.key:
                yield Violation("wrong location", f"{said}, where {self.keys.get(answer.location)} is")
            elif answer.final and not answer.stored:
                yield Violation("wrongly refused", f"{said}: {answer.why}")

    def _repeated(self) -> Iterator[Violation]:
        places: dict[str, list[str]] = {}
        for reference, name in self.keys.items():
            places.setdefault(name, []).append(reference)
        for name, several in places.items():
            if len(several) > 1:
                yield Violation("stored twice", f"{' and '.join(several)} are {name}")

    def _dangling(self) -> Iterator[Violation]:
        for place, resource in self.held.items():
            for reference in references(resource):
                if self.resolve(reference) is None:
                    yield Violation("dangling reference", f"{place} refers to {reference}")

    def _half_groups(self) -> Iterator[Violation]:
        """Whatever is stored belongs to a group, of those that were sent, that is stored whole."""
        there = set(self.keys.values())
        groups = {group for submission in self.submissions for group in submission.groups}
        sent = frozenset().union(*groups)
        whole = frozenset().union(*(group for group in groups if group <= there))
        for place, name in self.keys.items():
            if name in sent - whole:
                yield Violation("half group", f"without what belongs to it, {place} is there: {name}")

    def _altered(self) -> Iterator[Violation]:
        sent: dict[str, set[str]] = {}
        for entry in self.sound:
            sent.setdefault(entry.key, set()).add(entry.digits)
        for place, name in self.keys.items():
            is_now = digits(self.held[place], self.resolve)
            if name in sent and is_now not in sent[name]:
                yield Violation("altered", f"{place} is {is_now}, sent was {' or '.join(sent[name])}")

    def _never_sent(self) -> Iterator[Violation]:
        sent = {entry.key for entry in self.sound}
        for place, name in self.keys.items():
            if name not in sent:
                yield Violation("never sent", f"{place}: {name}")

    def _unanswered(self) -> Iterator[Violation]:
        answered = {id(answer.entry) for answer in self.answers if answer.final}
        for submission in self.submissions:
            for entry in submission.entries if submission.name not in self.abandoned else ():
                if id(entry) not in answered and not entry.faulty:
                    yield Violation("unanswered", f"{entry.where}: {entry.key}")
