"""Which channel matters: one file per criterion."""
