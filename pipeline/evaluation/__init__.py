"""A run held against truth."""
