"""cgm-proxy makes any FHIR R4 server a conformant receiver of continuous glucose monitoring (CGM) data.

This docstring is the architecture. `docs/architecture.md` shows it as a page, and `docs/glossary.md` explains the words.

## The story of a submission

    detect → parse → find orders → judge → find duplicates → plan → send → settle → reply

| stage | takes | returns | where |
|---|---|---|---|
| detect | request line, headers, body | a dialect, or none: stream | `server/front_door.py`, `core/submission/detection.py` |
| parse | bytes | a Submission with its entries, or a 400 | `receiver/parsing.py`, `core/codec/`, `core/submission/reader.py` |
| find orders | patient | the patient's active orders, cached | `receiver/story.py`, `cache/`, `core/submission/orders.py` |
| judge | entries, orders, rules | a verdict for each entry, and one for the whole | `core/submission/judge.py`, `core/rules/` |
| find duplicates | accepted entries | locations of stored entries | `receiver/duplicates.py`, `core/submission/identity.py` |
| plan | accepted entries, duplicates | which entries are created, in which groups and order | `core/submission/plan.py` |
| send | plan | the upstream's answer for each entry, after retries | `receiver/forwarding/`, `core/rest/reactions.py` |
| settle | answers | one outcome for each entry: stored, refused or unknown | `receiver/storing.py` |
| reply | verdicts, outcomes | a response Bundle in the entries' order | `core/submission/reply.py` |

`receiver/story.py` tells this story in one function, and `receiver/storing.py` the part from finding duplicates to settling.
Judging, planning and replying do no I/O; finding orders, finding duplicates and sending are the only awaits. A submission is
judged in parts: as soon as it is certain that it is not refused as a whole, parts are sent while later ones are judged.

`receiver/intake.py` takes a submission from its request to its answer, without HTTP. With `Prefer: respond-async`, `jobs/`
first keeps the submission in a file, and a worker later hands it to the same intake.

## Packages

| package | what is there |
|---|---|
| `cli.py`, `commands/` | the commands |
| `server/` | wiring, the front door (what streams, what is inspected), answers as FHIR, the operations port |
| `relay/` | streaming through, byte for byte; it knows nothing of submissions |
| `jobs/` | kept submissions (`Prefer: respond-async`) |
| `receiver/` | the story of a submission, and one path from its accepted entries to what the upstream holds |
| `upstream/` | the FHIR server: client, negotiation of what it can do, rate limiter, faults |
| `cache/` | what is cached, in this process or in Valkey |
| `offload.py` | long work in threads, in turns, and throttled while other requests stream |
| `regular_files.py` | reading of the files that an operator names |
| `observability/`, `settings/` | metrics, logs and statistics of streams; the settings file and the environment |
| `rulekit/` | rule files: loading, linting, testing, importing |
| `sandbox/` | the embedded FHIR store behind the demo, and simulated data |
| `auth`, `submitter` | not there yet: who may submit; the other actor, with its export formats and reports |
| `core/` | pure code: no I/O, and the time is an argument |
| `core/http/`, `core/r4/` | header fields and base URLs; FHIR R4 itself |
| `core/codec/` | JSON and XML, without losing digits |
| `core/rules/`, `core/submission/` | the rules engine; the guide's submissions and orders |
| `core/rest/` | requests to a FHIR server, and the meaning of its answers |

Imports go in one direction. An arrow means "imports":

    cli → commands → server → {relay, jobs → receiver → {upstream, cache}} → {observability, settings} → core
    server → rulekit
    within core: rest → {submission, rules} → codec → {r4, http} → issues

`relay/` knows nothing of submissions, but shares the table of the upstream's faults (`upstream/faults.py`). `rulekit/` and
`sandbox/` import only core. `core/` has no I/O, clock, environment, logging or metrics; the time is the argument `now`.
import-linter (contracts in `pyproject.toml`) and ruff's banned imports hold this.

A fault of one entry is a value (`Issue` in `core/issues.py`); an exception (`RequestRefused`) is for a whole request.

## Invariants

1. **Nothing answered 201 or 200 is missing upstream.** An entry whose fate is unknown answers 503 and may be sent again.
2. **Nothing is stored twice,** whatever dies, repeats or races. The authority is the upstream's store, by conditional create on
   one identifier or by what stands in for it where there is none. Caches only save work.
3. **Resources are stored as they were sent:** numbers keep their digits; the order of elements, extensions and text stay.
   Only the identity (one more identifier) is added, and references are resolved.
4. **The check can't be bypassed.** Whether a request is a submission is decided on its parsed content, and the proxy forwards
   exactly what it parsed.
5. **Other requests are not changed.**
6. **Fail closed at start, fail clear at run.** A faulty rule or setting stops the start with file, key and cure; a faulty request
   gets an OperationOutcome that names entry, element and rule; a fault of the upstream gives 502, 503 or 504, never a hang.
7. **No patient data in logs, metrics' labels or logged URLs.**

## Where to add what

| to add | goes to |
|---|---|
| a version of the guide (dialect) | rows in `core/submission/dialects.py` and `sandbox/simulation/`, and a folder in `rules/` |
| a rule | YAML with its samples in `rules/`; a hospital's own beside them |
| a policy about orders | a field in `settings/sections.py` and a finding in `core/submission/order_policies.py` |
| a way to send entries, or to create each once | a row in `core/rest/strategy.py` |
| a reaction to an upstream's answer | a row in `core/rest/reactions.py` |
| a metric | a row in `observability/metrics.py` |
| an alert | the chart's templates in `helm/` |
| a setting | a field in `settings/sections.py` |
"""

__version__ = "0.1.0"
