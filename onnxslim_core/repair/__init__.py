"""How consumers are mended after a removal: one file per repair."""
