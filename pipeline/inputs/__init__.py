"""Shards of images in: what a user names becomes samples."""
