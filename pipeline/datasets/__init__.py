"""A run read back as samples."""
