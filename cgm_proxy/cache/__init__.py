"""What is remembered to save work: in this process, or in Valkey where replicas share it. Losing it costs look-ups, never truth."""
