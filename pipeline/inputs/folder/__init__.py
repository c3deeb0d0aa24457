"""Folders of images as shards."""
