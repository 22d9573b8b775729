"""The story of a submission, from its body to its response.

`intake` calls `parsing` and then `story`, which judges and hands the accepted entries to `storing`. `storing` finds
`duplicates`, plans, and sends with `forwarding`; in observe mode it also sends refused entries (`pass_through`).
"""
