"""The pure part: no I/O, clock, environment, logging or metrics; it imports nothing but itself."""
