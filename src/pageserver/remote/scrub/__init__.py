"""The scrubber: reads a bucket, says what is wrong with it and what nobody needs (tenants.md 24).

    listing ─▶ inventory ─▶ judge (errors, warnings) ─▶ report
                       └──▶ orphans ─▶ purge, which looks at everything a second time

`inventory`, `judge` and `orphans` decide and touch nothing; `scrubber` lists, reads, downloads and, if it is told to,
deletes orphans. It works beside servers that write to the bucket at the same time, and it never writes an object.
"""

from pageserver.remote.scrub.report import Finding, Level, Orphan, ScrubReport
from pageserver.remote.scrub.scrubber import Progress, Scrubber

__all__ = ["Finding", "Level", "Orphan", "Progress", "ScrubReport", "Scrubber"]
