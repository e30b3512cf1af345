"""The chaos test: numbered messages, mixed clients, and a schedule of faults between them."""
