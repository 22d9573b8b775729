"""Bytes to values and back: FHIR as JSON, whose numbers keep their digits, and as XML by R4's definitions; YAML for rules.

`bodies.py` finds the format of a body and undoes its compression.
"""
