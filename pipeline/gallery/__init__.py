"""A run for eyes: self-contained HTML pages."""
