"""Several processes on one port: their parent, and what each of them runs."""
