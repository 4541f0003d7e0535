"""The source topic, with its consumer, the positions from which it is read, and the lag."""
