"""The keeper: a thread that closes, scans and publishes, duty by duty."""
