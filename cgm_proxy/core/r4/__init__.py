"""FHIR R4: its definitions, dates and primitive values, and what the base specification demands of any resource.

`model.py` has the definitions, `validator.py` checks a resource by them. The other modules check one matter each.
"""
