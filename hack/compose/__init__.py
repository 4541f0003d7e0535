"""The compose files run on this machine without containers: programs that are here stand in for the images."""
