"""DiffSeg itself: from attention maps to a label map with scores."""
