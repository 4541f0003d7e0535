"""The Python stage: runs a user's function on the source topic's records, and writes the topic that processors read."""
