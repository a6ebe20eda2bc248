"""The clustering peers of benchmarks/figure4.py, written anew from their papers: arrays in, labels out, no label seen."""
