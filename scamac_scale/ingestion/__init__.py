"""Raw files to a training store: open and check, gene statistics, variable genes, write."""
