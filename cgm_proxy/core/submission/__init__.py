"""The guide's submissions, from the request to the response.

- What is a submission: `dialects` (the guide's versions), `detection`.
- What it contains: `reader` (from the bytes of a body), `model` (Submission and Entry).
- Whether it is accepted: `orders`, `order_policies`, `verdicts`, `judge`.
- What is stored: `identity`, `batching`, `plan`, `outcomes`.
- What is answered: `reply`, `async_pattern`.
"""
