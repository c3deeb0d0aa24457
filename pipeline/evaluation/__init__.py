"""Evaluation: a run compared with a data set's truth."""
