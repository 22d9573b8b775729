"""Bytes to FHIR resources and back: JSON with its digits kept, and XML by R4's own definitions."""
