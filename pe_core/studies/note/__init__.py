"""The results note beside our own runs."""
