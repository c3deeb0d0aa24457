"""One device's work: read, label, encode, commit."""
