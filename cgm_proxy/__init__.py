"""cgm-proxy makes any FHIR R4 server a conformant receiver of continuous glucose monitoring (CGM) data.

The story of a submission, which `submission.py` tells in one function:

    detect → parse → find orders → judge → find known → plan → forward → reply

| stage       | takes                       | gives                                        | where                            |
|-------------|-----------------------------|----------------------------------------------|----------------------------------|
| detect      | request line, headers, body | a dialect, or "not ours: stream it"          | `core/detect.py`, `relay.py`     |
| parse       | bytes                       | a Submission and its entries, or a 400       | `core/body.py`, `core/bundle.py` |
| find orders | patient                     | the patient's active orders, cached          | `memory.py`, `core/orders.py`    |
| judge       | entries, orders, rules      | a verdict for each entry, and one for all    | `core/judge.py`, `core/rules.py` |
| find known  | accepted entries            | the locations of those stored already        | `known.py`, `core/identity.py`   |
| plan        | accepted, known             | for each: create, stored, or same as entry K | `core/plan.py`                   |
| forward     | plan                        | for each: location and etag, or why not      | `forward.py`, `delivery.py`      |
| reply       | everything                  | a response Bundle, in the entries' order     | `core/reply.py`, `render.py`     |

Judging goes part by part (`core/parts.py`), and what is sure not to be refused with the whole is stored while later parts are
judged: `storing.py` runs find known → plan → forward for each part. How much goes upstream at once follows what the upstream
takes (`pace.py`). How entries go, and how each is created once, follows what it can do (`abilities.py`, `core/strategy.py`).

`intake.py` is the way of a submission from its request to its answer without HTTP, the same now and later: with
`Prefer: respond-async` a submission is kept first (`status.py`, `jobs.py`, `jobs_store.py`), and its story is told by a worker.

Dependencies run `cli → app → handlers → intake → submission → storing → {upstream, core}`. `core` imports nothing but `core`
and has no I/O, clock, environment, logging or metrics: `now` is an argument. A fault of one entry is a value
(`core.errors.Issue`); exceptions are for faults of the whole request.

Invariants, which the tests hold:

1. Nothing answered 201 or 200 is missing upstream. An entry whose fate is unknown answers 503 and may be sent again.
2. Nothing is stored twice, whatever dies, repeats or races. The authority is the upstream store, by conditional create on
   one identifier, or by what stands in for it where there is none; caches only save work.
3. What is stored is what was sent: numbers keep their digits, unknown order, extensions and text stay. Added are only the
   identity (one more identifier) and resolved references.
4. No way around the check: what is a submission is decided on the parsed content, and what is parsed is forwarded.
5. What is not ours is not touched.
6. Fail closed at start, fail clear at run.
7. No patient data in logs, metrics' labels or logged URLs.

Where to add what: a version of the guide is a row in `core/dialects.py` and a folder in `rules/`; a policy is a field of
`settings.Policies` and a row in `core/judge.py`; a way to create once is a row in `core/strategy.py`; a metric is a row in
`metrics.py`; a rule is YAML with its samples.
"""

__version__ = "0.1.0"
