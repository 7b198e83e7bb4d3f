"""What each operator means for labels, shapes and MACs: one file per family."""
