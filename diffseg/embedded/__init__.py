"""The embedded model: architecture, losses, trainer."""
