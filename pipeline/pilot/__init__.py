"""Before the bill: a seeded sample, thresholds side by side, hours and cost."""
