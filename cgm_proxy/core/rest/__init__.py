"""What is said to a FHIR server and what it answers: create requests, responses, capability statements, strategies."""
