"""What the server tells about itself: log lines and metrics. Nothing here decides anything.

Log lines are an event and fields; metrics keep the names of metrics.md, also where those lack `_total`.
"""

from pageserver.observe.logging import configure_logging
from pageserver.observe.metrics import render_metrics

__all__ = ["configure_logging", "render_metrics"]
