"""The DiffSeg algorithm: from attention maps to object proposals."""
