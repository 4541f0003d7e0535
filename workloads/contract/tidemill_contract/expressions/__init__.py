"""Filter and derive expressions: their grammar, types and compilation."""
