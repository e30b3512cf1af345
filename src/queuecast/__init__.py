"""Queuecast: a message queue on the web."""

__version__ = "0.1.0"
