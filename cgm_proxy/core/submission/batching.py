"""Cut a submission into parts, so that the first can be on its way while later ones are judged."""

from collections.abc import Iterator

from cgm_proxy.core.submission.model import Entry, Submission


def parts(submission: Submission, size: int) -> Iterator[tuple[Entry, ...]]:
    """Give what references bind together, in one part; then the rest, `size` entries at a time.

    Entries of the rest are referenced by none and reference nothing but devices, so each part leans on the first alone. An
    atomic submission has one part.
    """
    if submission.atomic or len(submission.entries) <= size:
        yield submission.entries
        return
    referenced = set(submission.internal_references.values())
    linking = submission.entries if referenced else ()
    bound = {e.index for e in linking if e.index in referenced or _binds(e, submission)}
    if bound:
        yield tuple(entry for entry in submission.entries if entry.index in bound)
    free = [entry for entry in submission.entries if entry.index not in bound]
    for start in range(0, len(free), size):
        yield tuple(free[start : start + size])


def _binds(entry: Entry, submission: Submission) -> bool:
    """Tell whether an entry belongs to those that it references: readings do not belong to their device."""
    kinds = {submission.entries[index].type for index in submission.referenced_entries(entry)}
    return bool(kinds) and (entry.type == "Device" or kinds != {"Device"})
