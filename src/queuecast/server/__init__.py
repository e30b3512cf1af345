"""Sockets: the listener, the door and the connections behind it."""
