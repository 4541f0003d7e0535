"""The only operator code that reads or changes external systems."""
