"""Faults, one after the other, on a local platform with three brokers: what each process says, and what is counted."""
