"""What operators see: metrics, structured logs and the counters of streamed traffic."""
