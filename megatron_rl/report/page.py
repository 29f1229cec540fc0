"""One HTML file from the collected data: scripts and data are packed into it, nothing is fetched when it opens."""

import base64
import functools
import gzip
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.logger import finite
from megatron_rl.report.collect import Json
from megatron_rl.report.compare import collect, collect_samples
from megatron_rl.report.limits import LIMITS, choose, text_size, thinned
from megatron_rl.report.samples import Sample
from megatron_rl.run_folder import write_text

MAX_BYTES = 4_900_000
"""The file stays below this: samples, then points of curves are left out until it does."""
_MAX_COMPRESSION = 8
"""Samples of more characters than this times the limit are not even tried: packing them takes seconds."""

_SCRIPTS = ("format.js", "charts.js", "views.js", "samples.js", "page.js")


def write_report(*folders: Path, out: Path | None = None) -> Path:
    """Write the report of runs, pipelines (finished or not) and evaluations, and return its path.

    Args:
        out: the file; default: report.html in the folder, of several folders in the current one.

    Raises:
        InputError: a folder is none of these, a file in it is broken, or the report cannot be written.
    """
    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if path.is_dir():
        raise InputError(f"{path}: a folder is there; give a file as --out")
    page = _fitting(collect(folders), collect_samples(folders))
    try:
        write_text(path, page)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written there: {error}; give another file as --out") from error
    return path


def _fitting(report: Json, samples: Sequence[Sample]) -> str:
    """The page with as much as keeps its size."""
    for limits in LIMITS:
        chosen = choose(samples, limits)
        if text_size(chosen) > _MAX_COMPRESSION * MAX_BYTES:
            continue
        stages = [thinned(stage, limits.curve_steps) for stage in report["stages"]]
        page = _render(report | {"stages": stages, "samples": chosen, "samples_written": len(samples)})
        if len(page.encode()) <= MAX_BYTES:
            return page
    raise InputError(f"{report['name']:.200}: no page of {MAX_BYTES:,} bytes holds so much; give fewer folders")


def _render(report: Json) -> str:
    files = resources.files("megatron_rl.report")
    parts = {
        "title": html.escape(report["name"]),
        "style": files.joinpath("page.css").read_text(encoding="utf-8"),
        "script": "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "plotly": _packed_plotly() if report["stages"] else "",
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
