"""The tables that operator, processor and API share, with the SQL of the statements on them.

A time in a bigint column is in epoch milliseconds.
"""
