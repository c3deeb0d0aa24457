"""Vision transformers of the DINOv2 and DINOv3 families: architectures, loading, capture of self-attention."""
