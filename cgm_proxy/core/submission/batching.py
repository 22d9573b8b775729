"""Cut a submission into parts, so that the first part can be sent while later ones are judged."""

from collections.abc import Iterator

from cgm_proxy.core.submission.model import Entry, Submission


def parts(submission: Submission, size: int) -> Iterator[tuple[Entry, ...]]:
    """Yield the entries that references bind together as one part, then the others, `size` entries at a time.

    No entry references any of the others, and they reference nothing but devices: each part depends on the first one alone.
    An atomic submission is one part.
    """
    if submission.atomic or len(submission.entries) <= size:
        yield submission.entries
        return
    referenced = set(submission.internal_references.values())
    linking = submission.entries if referenced else ()
    bound = {e.index for e in linking if e.index in referenced or _belongs_to_references(e, submission)}
    if bound:
        yield tuple(entry for entry in submission.entries if entry.index in bound)
    free = [entry for entry in submission.entries if entry.index not in bound]
    for start in range(0, len(free), size):
        yield tuple(free[start : start + size])


def _belongs_to_references(entry: Entry, submission: Submission) -> bool:
    """Whether an entry belongs to the entries that it references; a reading does not belong to its device."""
    types = {submission.entries[index].type for index in submission.referenced_entries(entry)}
    return bool(types) and (entry.type == "Device" or types != {"Device"})
