"""Reads series of the Numenta Anomaly Benchmark, and scores detectors, for `make bench-nab`."""
