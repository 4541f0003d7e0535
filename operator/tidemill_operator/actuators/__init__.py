"""Actuators, the classes with which the operator reads and changes external systems."""
