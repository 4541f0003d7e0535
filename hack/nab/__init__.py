"""The Numenta Anomaly Benchmark: its series and its scoring, for `make bench-nab`."""
