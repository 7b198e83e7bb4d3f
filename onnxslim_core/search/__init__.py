"""How much to take where."""
