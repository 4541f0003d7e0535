"""The tables that operator, processor and API share: a module a table, with its columns and the statements over it.

Times that are decided on are epoch milliseconds (bigint), so that no session's time zone matters; times that
people read are timestamptz.
"""
