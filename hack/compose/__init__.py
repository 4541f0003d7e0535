"""Runs the compose files without containers: installed programs of this machine replace the images."""
