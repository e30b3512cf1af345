"""What each command of `queuecast` does; cli.py reads its arguments."""
