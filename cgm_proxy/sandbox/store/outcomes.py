"""Errors and OperationOutcomes with HAPI's texts, so that a client gets the same ones here as from a real server."""

from cgm_proxy.core.json_values import JsonObject

#: HAPI's code system for the result of a write (`SUCCESSFUL_CREATE` and so on).
STORAGE_CODES = "https://hapifhir.io/fhir/CodeSystem/hapi-fhir-storage-response-code"

#: The display of each of these codes.
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


class StoreError(Exception):
    """An error response: an HTTP status and a text, which begins with HAPI's message number where HAPI has one.

    `location` is the deleted version that a 410 is about. `entry` is the index of the faulty entry of a Bundle.
    """

    def __init__(self, status: int, text: str, *, code: str = "processing", location: str | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.code = code
        self.location = location
        self.entry: int | None = None

    def outcome(self, code: str | None = None) -> JsonObject:
        """Return the OperationOutcome; `code` replaces the issue's code (HAPI's is `exception` inside a batch)."""
        issue: JsonObject = {"severity": "error", "code": code or self.code, "diagnostics": self.text}
        if self.entry is not None:
            issue["expression"] = [f"Bundle.entry[{self.entry}]"]
        return {"resourceType": "OperationOutcome", "issue": [issue]}


def success(code: str, text: str) -> JsonObject:
    """Return the OperationOutcome of a successful write; `code` is one of HAPI's storage codes."""
    coding = {"system": STORAGE_CODES, "code": code, "display": DISPLAYS[code]}
    issue = {"severity": "information", "code": "informational", "details": {"coding": [coding]}, "diagnostics": text}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def unreadable(text: str) -> StoreError:
    """Return the error for a body that is no FHIR resource."""
    return StoreError(400, f"HAPI-0450: Failed to parse request body as JSON resource. Error was: {text}")
