"""What the demo and fast tests need instead of a hospital: a small FHIR R4 store and simulated submissions."""
