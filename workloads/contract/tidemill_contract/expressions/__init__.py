"""Filter and derive expressions: grammar, types and compilation."""
