"""The parts of benchmarks/batches.py: cells with batches, methods, their scores, and the further questions."""
