"""Log records: where each comes from, how it reaches the driver's log from a worker, how repeats are counted."""
