"""From a plan to what the upstream holds: waves of chunks, sent and retried until the outcome of each entry is known.

`waves` sends a plan and `chunks` one chunk of it, with `send` for one request and `retry_budget` for how often. `ledger` has
the outcomes. What an answer of the server leads to is decided by `core/rest/reactions.py`.
"""
