"""The report of a run or a pipeline: one HTML file that works offline.

`collect` reads the run folder, `samples` chooses which samples fit, `page` writes the file from `page.html`, `page.css`
and the scripts beside it.
"""

from megatron_rl.report.page import write_report

__all__ = ["write_report"]
