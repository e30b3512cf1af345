"""Bytes to events and back: sans-I/O, no clock, no logging of bodies."""
