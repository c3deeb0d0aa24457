"""Categories: segments of a whole run, grouped without a label or named from a few labelled images."""
