"""Streaming through, byte for byte, whatever is no submission."""
