"""What the server tells about itself: log lines and metrics. Nothing here decides anything.

Log lines are an event and fields; metrics keep the names of metrics.md, also where those lack `_total`.
"""

from pageserver.observe.logging import configure_logging, level_of
from pageserver.observe.metrics import render_metrics
from pageserver.observe.process_metrics import EventCounts, HttpCounts, ProcessMetrics, ScrapeCounts
from pageserver.observe.scrape import Scrapes
from pageserver.observe.startup import StartupTimes

__all__ = [
    "EventCounts",
    "HttpCounts",
    "ProcessMetrics",
    "ScrapeCounts",
    "Scrapes",
    "StartupTimes",
    "configure_logging",
    "level_of",
    "render_metrics",
]
