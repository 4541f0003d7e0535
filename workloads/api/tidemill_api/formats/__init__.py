"""The formats of answers. Each has its own module, and `registry` finds them."""
