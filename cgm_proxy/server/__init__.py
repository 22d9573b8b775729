"""The proxy as a server: wiring, the front door, answers as FHIR, and the operations port."""
