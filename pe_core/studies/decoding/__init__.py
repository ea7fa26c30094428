"""Generating one token at a time."""
