"""The demo: a real data set through the whole platform over HTTP, compared with a batch recomputation."""
