"""Storage: URLs, listings, ranged reads and create-only writes through fsspec, with retries."""
