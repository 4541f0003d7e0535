"""The Python stage runs a user's function on the source topic's records.

The stage writes the results to another topic. Processors read that topic.
"""
