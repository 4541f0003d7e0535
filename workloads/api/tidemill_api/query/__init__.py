"""Queries over stored windows and listings: parameters, SQL, answers."""
