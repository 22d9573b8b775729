"""The proxy as an HTTP server.

`proxy` wires everything and listens, and `connections` bounds what a connection may do. `front_door` decides what happens to
each request and handles it; `request_bodies` reads bodies, `fhir_responses` writes FHIR responses, `async_status` and
`peers` answer for submissions that are kept for later. `operations` is the port for metrics and probes.
"""
