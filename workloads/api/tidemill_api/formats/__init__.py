"""Formats of answers, a module each; `registry` finds them."""
