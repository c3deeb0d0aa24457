"""Stable Diffusion and its kin: loading, layouts, capture of self-attention."""
