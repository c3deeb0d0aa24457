"""Fakes that ship, and what `diffseg bench` runs."""
