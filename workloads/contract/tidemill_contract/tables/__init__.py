"""The tables that operator, processor and API share. Each module has the columns and the SQL of one or two tables.

Times that the program compares are epoch milliseconds (bigint), so that they do not depend on a session's time zone.
Times that only people read are timestamptz.
"""
