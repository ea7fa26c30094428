"""Trained at one context length, read at others."""
