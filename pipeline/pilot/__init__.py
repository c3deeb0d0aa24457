"""Pilot: a seeded sample labelled at several thresholds, with the hours and cost of the whole run."""
