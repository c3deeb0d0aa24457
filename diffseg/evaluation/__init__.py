"""Measures of partitions: published protocols, boundaries, baselines, intervals."""
