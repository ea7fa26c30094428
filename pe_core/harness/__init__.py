"""What lm-evaluation-harness needs of this library: its command with our model, and a task of our own."""
