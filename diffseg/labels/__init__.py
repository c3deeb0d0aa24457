"""Label maps: painted from proposals, cleaned up, measured, scored and brought to the host."""
