"""The tables that operator, processor and API share. Each module has the columns and the SQL statements of a table.

Times that the program compares are epoch milliseconds (bigint), so that they do not depend on a session's time zone.
Times for people are timestamptz.
"""
