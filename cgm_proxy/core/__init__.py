"""The pure part of the proxy: FHIR R4, the codecs, the rules engine, and the guide's submissions and orders.

Nothing here does I/O or uses a clock, the environment, logging or metrics; the time is an argument (`now`). Imports go in one
direction: `issues` → `http`, `r4` → `codec` → `rules`, `submission` → `rest`.
"""
