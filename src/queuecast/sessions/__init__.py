"""One client's conversation, per protocol."""
