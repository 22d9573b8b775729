"""The embedded FHIR R4 store behind `cgm-proxy demo` and the tests: HTTP, JSON, search and transactions over SQLite.

A request passes `app` (HTTP), `routes` (which interaction the method and path name) and `interactions` or `bundles` (what it
does) to `database`. Searches go through `search` and `sql_conditions`; `search_parameters` is the table of what can be
searched. The answers, down to the texts of errors, are HAPI's.
"""
