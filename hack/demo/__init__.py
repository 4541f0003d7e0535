"""The demo: sends a real data set through the whole platform over HTTP, and compares it with a batch recomputation."""
