"""One HTML file from the collected data: scripts and data are packed into it, nothing is fetched when it opens."""

import base64
import functools
import gzip
import html
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from megatron_rl.logger import finite
from megatron_rl.report.collect import collect_run, stage_folders
from megatron_rl.report.samples import LIMITS, choose, read_samples, text_size

MAX_BYTES = 4_900_000
"""The file stays below this: samples are left out until it does."""
_MAX_COMPRESSION = 8
"""Samples of more characters than this times the limit are not even tried: packing them takes seconds."""

_SCRIPTS = ("format.js", "charts.js", "samples.js", "page.js")


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` for a run or a pipeline, finished or not, and return its path.

    Raises:
        InputError: no run there, or a broken file in it.
    """
    report = collect_run(run_dir)
    samples = [s for i, folder in enumerate(stage_folders(run_dir)) for s in read_samples(folder, stage=i)]
    report["samples_written"] = len(samples)
    for limits in LIMITS:
        chosen = choose(samples, limits)
        if limits is not LIMITS[-1] and text_size(chosen) > _MAX_COMPRESSION * MAX_BYTES:
            continue
        page = _render(report | {"samples": chosen})
        if len(page.encode()) <= MAX_BYTES:
            break
    path = run_dir / "report.html"
    temporary = run_dir / ".report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _render(report: dict[str, Any]) -> str:
    files = resources.files("megatron_rl.report")
    parts = {
        "title": html.escape(report["name"]),
        "style": files.joinpath("page.css").read_text(encoding="utf-8"),
        "script": "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "plotly": _packed_plotly(),
        "report": _packed(json.dumps(finite(report), allow_nan=False, separators=(",", ":"))),
    }
    page = files.joinpath("page.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        page = page.replace(f"<!--{name}-->", content)
    return page


@functools.cache
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs  # heavy: only when a report is made

    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """Gzip in base64: a quarter of the size, and no text in it can end a script element or be read as HTML."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")
