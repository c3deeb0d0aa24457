"""Generated scenes with pixel-exact truth."""
