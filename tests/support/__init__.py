"""What tests of several folders use: data, sources, settings, real processes, faults. Fixtures stay in ``conftest.py``."""
