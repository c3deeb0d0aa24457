"""The driver decides: what is done next, on which worker, and what becomes of every failure."""
