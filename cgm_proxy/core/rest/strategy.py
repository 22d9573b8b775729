"""What an upstream can do, and how entries are sent to it and created once: two small tables.

In each table the first row that the upstream is able to do is used, unless a setting names another row. Each row keeps the
invariants by itself: an entry is created in the way of its row, or not at all.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cgm_proxy.core.json_values import JsonObject, objects
from cgm_proxy.core.submission.identity import search_token
from cgm_proxy.core.submission.judge import referenced_first
from cgm_proxy.core.submission.plan import Group, Plan

#: The beginning of an identity; a UUID follows.
URN = "urn:uuid:"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server declares that it can do. The defaults are for a server whose statement can't be read."""

    transactions: bool = True
    batches: bool = True
    conditional_create: bool = True
    update_create: bool = False
    hapi: bool = False
    """Whether it is a HAPI. HAPI prefetches the conditions of a transaction in one statement only if they name the type (HAPI
    8.8.0, TransactionProcessor.preFetchConditionalUrls), and it takes batches although it does not declare them."""


def abilities(statement: JsonObject, types: Collection[str]) -> Abilities | None:
    """Read a CapabilityStatement as far as it is about resources of `types`; None if it is not one of a server.

    If the server does not declare an ability, the proxy does not use it. The fallback is slower but equally safe.
    (https://hl7.org/fhir/R4/capabilitystatement.html)
    """
    served = [rest for rest in objects(statement.get("rest")) if rest.get("mode") == "server"]
    if not served or statement.get("resourceType") != "CapabilityStatement":
        return None
    codes = [interaction.get("code") for interaction in objects(served[0].get("interaction"))]
    resources = [each for each in objects(served[0].get("resource")) if each.get("type") in types]
    software = statement.get("software")
    hapi = isinstance(software, dict) and "hapi" in str(software.get("name")).lower()

    def declared(ability: str) -> bool:
        return bool(resources) and all(each.get(ability) is True for each in resources)

    return Abilities(
        transactions="transaction" in codes,
        batches="batch" in codes or hapi,
        conditional_create=declared("conditionalCreate"),
        update_create=declared("updateCreate"),
        hapi=hapi,
    )


@dataclass(frozen=True, slots=True)
class Sending:
    """One way to send entries."""

    name: str
    available: Callable[[Abilities], bool]
    whole: bool = False
    """Whether entries that are sent together are stored whole or not at all. If not, members are sent before their summary,
    each entry by itself."""
    bundled: bool = True
    most: int | None = None
    """The largest number of entries that are sent together."""


@dataclass(frozen=True, slots=True)
class Creating:
    """One way to create each entry once; `request` is called with type, identity and condition."""

    name: str
    available: Callable[[Abilities], bool]
    request: Callable[[str, str, str], JsonObject]
    looks: bool = False
    """Whether the upstream is searched for all identities before entries are sent, and before they are sent again."""
    by_id: bool = False
    """Whether the identity is the resource's id, and is searched for as an id as well. It is an identifier in any case, which
    finds resources that were created in another way; but an update of a resource may drop an identifier."""
    alone: bool = False
    """Whether it relies on the patient's lock, and on earlier requests being over: entries of a request that may still arrive
    are not sent again."""


def logical_id(identity: str) -> str:
    """Return the id of a resource that is created with its identity as id: the UUID in it."""
    return identity.removeprefix(URN)


BATCH = Sending("batch", lambda able: able.batches)

SENDING = (
    Sending("transaction", lambda able: able.transactions, whole=True),
    BATCH,
    Sending("single", lambda _: True, bundled=False, most=10),
)

#: `If-None-Match: *` (RFC 9110, 13.1.2) keeps a resource that exists by then, if the server honours it on a PUT.
CREATING = (
    Creating(
        "conditional",
        lambda able: able.conditional_create,
        lambda resource_type, _, condition: {"method": "POST", "url": resource_type, "ifNoneExist": condition},
    ),
    Creating(
        "update",
        lambda able: able.update_create,
        lambda resource_type, identity, _: {
            "method": "PUT",
            "url": f"{resource_type}/{logical_id(identity)}",
            "ifNoneMatch": "*",
        },
        looks=True,
        by_id=True,
    ),
    Creating(
        "search",
        lambda _: True,
        lambda resource_type, *_: {"method": "POST", "url": resource_type},
        looks=True,
        alone=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One row of each table; `entries` is how many entries the upstream takes at once, None if that is not known."""

    sending: Sending = SENDING[0]
    creating: Creating = CREATING[0]
    hapi: bool = False
    entries: int | None = None
    batches: bool = True
    """Whether the entries of a refused transaction may be sent as a batch, which is answered entry by entry."""

    def request(self, resource_type: str, identity: str) -> JsonObject:
        """Return `Bundle.entry.request` of an entry."""
        condition = f"identifier={search_token(identity)}"
        return self.creating.request(
            resource_type, identity, f"{resource_type}?{condition}" if self.hapi else condition
        )

    def fits(self, group: Collection[int]) -> bool:
        """Whether a group can be stored whole."""
        return len(group) == 1 or (self.sending.whole and len(group) <= (self.entries or len(group)))


def strategy(able: Abilities, *, send: str = "auto", create: str = "auto", entries: int = 0) -> Strategy:
    """Choose the rows; `send` and `create` name them, or are `auto`; `entries` is 0 for no limit."""

    def chosen(row: Sending | Creating, setting: str) -> bool:
        return row.available(able) if setting == "auto" else row.name == setting

    sending = next(row for row in SENDING if chosen(row, send))
    creating = next(row for row in CREATING if chosen(row, create))
    limits = [limit for limit in (entries, sending.most) if limit]
    batches = send == "auto" and BATCH.available(able)
    return Strategy(sending, creating, able.hapi, min(limits, default=None), batches)


def split_groups(groups: Collection[Group], plan: Plan) -> tuple[list[tuple[Group, ...]], list[int]]:
    """Split groups into single entries: return the waves, each after what it references, and the entries on a circle.

    An entry is on a circle if it references the duplicate of an entry that references it.
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
