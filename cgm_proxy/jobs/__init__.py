"""Submissions kept for later (`Prefer: respond-async`): the queue, its SQLite file and the worker."""
