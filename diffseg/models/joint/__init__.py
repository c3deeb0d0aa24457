"""Models that know images and words in one space: CLIP and SigLIP, through transformers."""
