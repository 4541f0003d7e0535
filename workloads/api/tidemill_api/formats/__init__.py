"""The formats of answers. Each format is a module, and `registry` finds the modules."""
