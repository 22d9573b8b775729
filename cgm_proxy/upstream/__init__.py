"""The FHIR server behind the proxy: the client, what it can do, how fast it may be asked, and its faults."""
