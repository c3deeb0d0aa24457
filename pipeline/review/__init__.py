"""Review: which images people should look at, and their corrections taken back."""
