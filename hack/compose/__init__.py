"""Runs the compose files on this machine without containers: installed programs stand in for the images."""
