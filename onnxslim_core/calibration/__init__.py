"""Samples in: sources of arrays by input name."""
