"""Models that give attention: what is known of them, their files, loading, capture."""
