"""Refusals and outcomes in HAPI's words, so that a client meets the same texts here as on a real server."""

from cgm_proxy.core.json_values import JsonObject

#: HAPI's code system for what a write did (`SUCCESSFUL_CREATE` and the like).
STORAGE_CODES = "https://hapifhir.io/fhir/CodeSystem/hapi-fhir-storage-response-code"

#: What a write did: the display of each storage code.
DISPLAYS = {
    "SUCCESSFUL_CREATE": "Create succeeded.",
    "SUCCESSFUL_CREATE_NO_CONDITIONAL_MATCH": (
        "Conditional create succeeded: no existing resource matched the conditional URL."
    ),
    "SUCCESSFUL_CREATE_WITH_CONDITIONAL_MATCH": (
        "Conditional create succeeded: an existing resource matched the conditional URL so no action was taken."
    ),
    "SUCCESSFUL_UPDATE": "Update succeeded.",
    "SUCCESSFUL_UPDATE_NO_CHANGE": "Update succeeded: No changes were detected so no action was taken.",
    "SUCCESSFUL_UPDATE_AS_CREATE": "Update as create succeeded.",
    "SUCCESSFUL_UPDATE_NO_CONDITIONAL_MATCH": (
        "Conditional update succeeded: no existing resource matched the conditional URL so a new resource was created."
    ),
    "SUCCESSFUL_UPDATE_WITH_CONDITIONAL_MATCH": (
        "Conditional update succeeded: an existing resource matched the conditional URL and was updated."
    ),
    "SUCCESSFUL_DELETE": "Delete succeeded.",
    "SUCCESSFUL_DELETE_ALREADY_DELETED": (
        "Delete succeeded: Resource was already deleted so no action was taken."
    ),
    "SUCCESSFUL_DELETE_NOT_FOUND": (
        "Delete succeeded: No existing resource was found so no action was taken."
    ),
}  # fmt: skip


class Refused(Exception):  # noqa: N818 -- it reads as what happened
    """The request is refused with an HTTP `status`; `text` begins with HAPI's message number where HAPI has one.

    `location` is the version that the refusal is about (410); `entry` the place of the faulty entry in a Bundle.
    """

    def __init__(self, status: int, text: str, *, code: str = "processing", location: str | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.code = code
        self.location = location
        self.entry: int | None = None

    def outcome(self, code: str | None = None) -> JsonObject:
        """Give the OperationOutcome; `code` replaces the issue's code (HAPI says `exception` inside a batch)."""
        issue: JsonObject = {"severity": "error", "code": code or self.code, "diagnostics": self.text}
        if self.entry is not None:
            issue["expression"] = [f"Bundle.entry[{self.entry}]"]
        return {"resourceType": "OperationOutcome", "issue": [issue]}


def success(code: str, text: str) -> JsonObject:
    """Give the OperationOutcome that says what a write did, by its storage code."""
    coding = {"system": STORAGE_CODES, "code": code, "display": DISPLAYS[code]}
    issue = {"severity": "information", "code": "informational", "details": {"coding": [coding]}, "diagnostics": text}
    return {"resourceType": "OperationOutcome", "issue": [issue]}
