"""A fuzzer: files and folders that are damaged or crafted, by structure and by bytes, each told by a subject and a seed."""

import os

# as in the tests: before torch and numba are imported, so that all processes compute the same bits
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
