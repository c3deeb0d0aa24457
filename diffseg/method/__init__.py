"""The DiffSeg algorithm: from attention maps to a label map with scores."""
