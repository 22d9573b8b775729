"""The story of a submission, from its parsed request to its answer."""
