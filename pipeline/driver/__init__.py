"""The driver decides which task is done next, on which worker, and what happens after each failure."""
