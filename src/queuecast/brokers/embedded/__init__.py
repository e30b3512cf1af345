"""The broker within the process: exchanges, queues and feeds in memory."""
