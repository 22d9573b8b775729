"""Requests to a FHIR server, and the meaning of its responses."""
