"""The demo: sends a real data set through the platform, and compares the answers with a batch recomputation."""
