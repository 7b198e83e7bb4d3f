"""The channel graph: what can go together, and its removal."""
