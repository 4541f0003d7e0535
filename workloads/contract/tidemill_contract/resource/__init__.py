"""The resource: its model, its rules, and how a document is judged."""
