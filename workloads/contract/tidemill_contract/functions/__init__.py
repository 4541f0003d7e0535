"""Aggregate functions: the partials that they store, and the SQL that merges partials and computes answers."""
