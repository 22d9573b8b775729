"""The embedded FHIR store behind `cgm-proxy demo` and the tests."""
