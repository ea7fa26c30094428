"""How the ranking of position encodings changes with training, and with the kind of text."""
