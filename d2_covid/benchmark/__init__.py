"""Measures d2_covid beside other Mask R-CNNs, in one run and on one machine: ``make bench``, ``tools/benchmark.py``."""
