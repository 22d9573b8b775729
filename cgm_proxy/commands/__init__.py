"""The commands of `cgm-proxy` that are more than one call: `check` and `demo`."""
