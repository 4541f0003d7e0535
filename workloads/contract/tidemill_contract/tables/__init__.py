"""The tables that operator, processor and API share. Each module has a table's columns and its statements.

Times for decisions are epoch milliseconds (bigint), so that no session's time zone matters. Times for people are
timestamptz.
"""
