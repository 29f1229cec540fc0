"""The report of runs, pipelines and evaluations: one HTML file that works offline.

`collect` reads the folder of a run and `evaluations` that of an evaluation, `compare` puts several together, `limits`
chooses what fits, `page` writes the file from `page.html`, `page.css` and the scripts beside it.
"""

from megatron_rl.report.page import write_report

__all__ = ["write_report"]
