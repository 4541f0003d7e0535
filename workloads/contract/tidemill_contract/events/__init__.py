"""Events: which bytes are valid, and why others are not."""
