"""Event time: the watermark, and the closing of windows."""
