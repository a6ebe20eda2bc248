"""Labels of a reference, carried over to other cells."""
