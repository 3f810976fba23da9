"""The decoder that reads a caption and writes codes, and its loss."""
