"""Rule files as a person meets them: loading, linting, samples, listing, and import from a guide's packages."""
