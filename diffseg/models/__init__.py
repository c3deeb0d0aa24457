"""Models that attention is read from: their specifications, files, loading and capture."""
