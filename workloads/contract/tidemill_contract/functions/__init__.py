"""Aggregate functions: their partials, how partials merge, and how an answer is read from them."""
