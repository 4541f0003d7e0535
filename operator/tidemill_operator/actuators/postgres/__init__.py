"""The actuator for Postgres: schemas, roles, tables and the operator's rows."""
