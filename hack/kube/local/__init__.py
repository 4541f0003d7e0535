"""The cluster of this machine: its programs as processes of root, its network, its files, and their removal."""
