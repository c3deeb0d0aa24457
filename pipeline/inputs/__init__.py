"""Inputs: patterns become pinned shards, and shards become samples."""
