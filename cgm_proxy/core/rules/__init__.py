"""The rules engine: rule files, FHIRPath, the examination of one resource, and the verdict cache."""
