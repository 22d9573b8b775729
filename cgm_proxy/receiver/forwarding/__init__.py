"""From a plan to what the upstream holds: waves of chunks, sent and retried until the fate of each entry is known."""
