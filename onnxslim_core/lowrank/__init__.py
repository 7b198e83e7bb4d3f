"""Factor mathematics."""
