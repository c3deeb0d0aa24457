"""Exports: a run in the formats of other tools, with the photos of its source shards where they are wanted."""
