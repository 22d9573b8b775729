"""What an upstream can do, and so the way that entries take, by two small tables: how they are sent, how each is created once.

Of each table the first row counts that the upstream is able to do, unless a setting names another one. A row keeps the invariants
by itself: whatever is sent together, an entry is created in the way of its row or not at all.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.identity import search_token
from cgm_proxy.core.submission.judge import referenced_first
from cgm_proxy.core.submission.plan import Group, Plan

#: What an identity begins with; a UUID follows.
URN = "urn:uuid:"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server says that it can do; the defaults are FHIR's own way, for one that says nothing that can be read."""

    transactions: bool = True
    batches: bool = True
    conditional_create: bool = True
    update_create: bool = False
    hapi: bool = False
    """Whether it is a HAPI, which looks conditions up together only if they name the type (HAPI 8.8.0,
    TransactionProcessor.preFetchConditionalUrls), and takes batches although it does not say so."""


def abilities(statement: JsonObject, types: Collection[str]) -> Abilities | None:
    """Read a CapabilityStatement, as far as it is about resources of `types`; None where it does not say what the server does.

    What is not said is not done (https://hl7.org/fhir/R4/capabilitystatement.html): the way without it is slower, and as safe.
    """
    served = [rest for rest in objects(statement.get("rest")) if rest.get("mode") == "server"]
    if not served or statement.get("resourceType") != "CapabilityStatement":
        return None
    codes = [interaction.get("code") for interaction in objects(served[0].get("interaction"))]
    resources = [each for each in objects(served[0].get("resource")) if each.get("type") in types]
    software = statement.get("software")
    hapi = isinstance(software, dict) and "hapi" in str(software.get("name")).lower()
    return Abilities(
        transactions="transaction" in codes,
        batches="batch" in codes or hapi,
        conditional_create=_all(resources, "conditionalCreate"),
        update_create=_all(resources, "updateCreate"),
        hapi=hapi,
    )


def _all(resources: Collection[JsonObject], ability: str) -> bool:
    return bool(resources) and all(each.get(ability) is True for each in resources)


@dataclass(frozen=True, slots=True)
class Sending:
    """A row of how entries are sent."""

    name: str
    able: Callable[[Abilities], bool]
    whole: bool = False
    """Whether what is sent together is stored whole or not at all; else members go before their summary, each by itself."""
    bundled: bool = True
    most: int | None = None
    """Entries that are sent together at most."""


@dataclass(frozen=True, slots=True)
class Creating:
    """A row of how it is made sure that each entry is created once; `request` is made of type, identity and condition."""

    name: str
    able: Callable[[Abilities], bool]
    request: Callable[[str, str, str], JsonObject]
    looks: bool = False
    """Whether the upstream is asked for all identities before anything is sent, and again before it is sent again."""
    by_id: bool = False
    """Whether the identity is the resource's id, and looked for there as well: it is an identifier in any case, by which that is
    found which was created in another way, but which whoever amends the resource may drop."""
    alone: bool = False
    """Whether it rests on the patient's turn, and on what was sent before being over: what may still be under way is not sent
    again."""


def name(identity: str) -> str:
    """Give the id of the resource whose id is its identity."""
    return identity.removeprefix(URN)


SENDING = (
    Sending("transaction", lambda able: able.transactions, whole=True),
    Sending("batch", lambda able: able.batches),
    Sending("single", lambda _: True, bundled=False, most=10),
)

#: `If-None-Match: *` (RFC 9110, 13.1.2) keeps what is there by then, where the server heeds it on a PUT.
CREATING = (
    Creating(
        "conditional",
        lambda able: able.conditional_create,
        lambda kind, _, condition: {"method": "POST", "url": kind, "ifNoneExist": condition},
    ),
    Creating(
        "update",
        lambda able: able.update_create,
        lambda kind, identity, _: {"method": "PUT", "url": f"{kind}/{name(identity)}", "ifNoneMatch": "*"},
        looks=True,
        by_id=True,
    ),
    Creating("search", lambda _: True, lambda kind, *_: {"method": "POST", "url": kind}, looks=True, alone=True),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A row of each table; `entries` is how many the upstream takes at once at most, None where that is not known."""

    sending: Sending = SENDING[0]
    creating: Creating = CREATING[0]
    hapi: bool = False
    entries: int | None = None

    def request(self, kind: str, identity: str) -> JsonObject:
        """Give `Bundle.entry.request` of an entry."""
        condition = f"identifier={search_token(identity)}"
        return self.creating.request(kind, identity, f"{kind}?{condition}" if self.hapi else condition)

    def fits(self, group: Collection[int]) -> bool:
        """Tell whether a group can be stored whole."""
        return len(group) == 1 or (self.sending.whole and len(group) <= (self.entries or len(group)))


def strategy(able: Abilities, *, send: str = "auto", create: str = "auto", entries: int = 0) -> Strategy:
    """Choose the rows; `send` and `create` name them, or are `auto`; `entries` is 0 for no limit."""
    sending = next(row for row in SENDING if _chosen(row, able, send))
    creating = next(row for row in CREATING if _chosen(row, able, create))
    limits = [limit for limit in (entries, sending.most) if limit]
    return Strategy(sending, creating, able.hapi, min(limits, default=None))


def _chosen(row: Sending | Creating, able: Abilities, wanted: str) -> bool:
    return row.able(able) if wanted == "auto" else row.name == wanted


def apart(groups: Collection[Group], plan: Plan) -> tuple[list[tuple[Group, ...]], list[int]]:
    """Take groups apart into entries by themselves, each wave after what it references; and those that lie on a circle.

    On a circle lies what references a repetition of what references it.
    """
    inside = {index for group in groups for index in group}
    linked = {i: {plan.links.get(r, -1) for r in plan.creates[i].entry.references} & inside for i in inside}
    depth: dict[int, int] = {}
    for index in referenced_first(linked):
        depth[index] = max((depth[target] + 1 for target in linked[index]), default=0)
    waves: list[list[Group]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for index in sorted(depth):
        waves[depth[index]].append((index,))
    return [tuple(wave) for wave in waves], sorted(inside - depth.keys())
