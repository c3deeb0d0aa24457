"""The state of a run on storage."""
