"""The pure parts of HTTP: header fields, and the mapping between the public and the upstream's base URL."""
