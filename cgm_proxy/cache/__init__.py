"""What the proxy remembers to save requests upstream: patients' standing orders, and where entries are stored.

`cache.py` is what the other packages use. It stores bytes in a backend: `LocalBackend` keeps them in this process,
`ValkeyBackend` shares them among replicas. `writes.py` says what a streamed write invalidates. Nothing depends on the cache:
if it is lost, the proxy asks the upstream again.
"""
