"""Gallery: a run as self-contained HTML pages."""
