"""Sampling codes from the decoder."""
