"""UNets of the Stable Diffusion families: architectures, loading, capture of self-attention."""
