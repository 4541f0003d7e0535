"""Aggregate functions: their stored columns, and the SQL for merging columns and for computing results."""
