"""HTTP as the proxy needs it, without doing any: header fields, base URLs and request paths."""
