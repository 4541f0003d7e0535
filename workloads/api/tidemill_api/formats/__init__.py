"""The formats of query answers, such as JSON, CSV and Arrow. Each format is a module of this package."""
