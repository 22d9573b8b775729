"""What operators see of a running proxy: metrics, structured logs, and statistics of the streamed requests."""
