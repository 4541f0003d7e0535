"""Aggregate functions: the columns that they store, and the SQL that merges columns and computes results."""
