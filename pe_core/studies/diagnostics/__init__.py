"""What trained models do inside."""
