"""FHIR R4 itself: the definitions and what they demand of any resource."""
