"""int8: ranges from samples, grids, where Q and DQ go, what mends the rounding, and what stays in float."""
