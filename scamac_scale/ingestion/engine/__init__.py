"""A pass over an input: one pure function of a block of cells, mapped by threads of this process or by workers of a cluster."""
