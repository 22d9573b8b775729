"""The relay: it streams requests and responses through, byte for byte, and knows nothing of submissions."""
