"""Postgres: schemas, roles, tables and the rows that the operator writes."""
