"""Logs, cursors, cohorts and the tick. Knows no asyncio: it is given call_soon and a clock."""
