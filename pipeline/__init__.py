"""Shards of images in, shards of labels out: bytes, records and URLs around the method in `diffseg`."""
