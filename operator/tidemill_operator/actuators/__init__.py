"""The only code of the operator that touches the world: observe, compare, act, report."""
