"""Where messages come from: one small interface, one folder per broker."""
