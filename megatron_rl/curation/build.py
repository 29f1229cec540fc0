"""Runs a recipe: every problem goes through the steps until one leaves it out."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table

from megatron_rl.curation.recipe import DatasetRecipe
from megatron_rl.curation.sources import Candidate, Unreadable, read_source
from megatron_rl.curation.step import Step
from megatron_rl.curation.steps import make_step
from megatron_rl.data.problems import Problem
from megatron_rl.errors import InputError
from megatron_rl.run_folder import write_json

Show = Callable[[str, int], None]

READ = "read"
"""The name of what comes before the steps: rows that are no problems are left out there."""


@dataclass(slots=True)
class Counts:
    """Of one step.

    Attributes:
        left_out: by source.
        examples: the first few, as `id: reason`.
    """

    name: str
    entered: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """Problems that went on."""
        return self.entered - self.left_out.total()


_EXAMPLES, _ROWS_SHOWN = 5, 500


def build(recipe: DatasetRecipe, show: Show = lambda source, rows: None) -> dict[str, Any]:
    """Make the recipe's dataset, in place of an earlier one that was made so:

        NAME.jsonl                  id, prompt, answer, source, meta
        NAME_left_out/report.json   problems in and out by step and by source
        NAME_left_out/STEP.jsonl    whatever a step left out, with the reason

    The same recipe on the same files gives the same bytes. What is remembered of the problems are ids, and what
    the steps that look for duplicates have seen.

    Args:
        show: told the source and the number of its rows read so far, now and then.

    Returns:
        What is in report.json.

    Raises:
        InputError: a source or a setting cannot be read, or no problem is left.
    """
    steps = {name: make_step(name, settings) for name, settings in recipe.steps.items() if settings is not None}
    counts = [Counts(name) for name in (READ, *steps)]
    for made in (recipe.dataset, recipe.left_out):
        if made.exists() and not recipe.report.is_file():
            raise InputError(
                f"{made}: is there, and no dataset was built; remove it, or set another name or output_dir"
            )
    temporary = recipe.dataset.with_name(f".{recipe.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / recipe.left_out.name).mkdir(parents=True)
        kept = _run(recipe, list(steps.values()), counts, temporary, show)
        if not kept:
            last = next(count for count in counts if not count.passed)
            raise InputError(f"{recipe.name}: no problem is left after {last.name}: {last.examples[0]}")
        report = _report(recipe, counts, kept)
        write_json(temporary / recipe.left_out.name / recipe.report.name, report)
        shutil.rmtree(recipe.left_out, ignore_errors=True)
        (temporary / recipe.left_out.name).rename(recipe.left_out)
        (temporary / recipe.dataset.name).rename(recipe.dataset)
    except OSError as error:
        raise InputError(f"{recipe.dataset}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for step in steps.values():
            step.close()
    return report


def _run(recipe: DatasetRecipe, steps: list[Step], counts: list[Counts], folder: Path, show: Show) -> Counter[str]:
    """Write the files of a dataset; the number of its problems by source."""
    kept: Counter[str] = Counter()
    with ExitStack() as stack:
        dataset = stack.enter_context(open(folder / recipe.dataset.name, "w", encoding="utf-8"))
        left_out = [
            stack.enter_context(open(folder / recipe.left_out.name / f"{count.name}.jsonl", "w", encoding="utf-8"))
            for count in counts
        ]
        for row in _rows(recipe, show):
            place, reason = _judge(row, steps, counts)
            if reason is None:
                assert isinstance(row, Candidate)
                kept[row.source] += 1
                _write(dataset, _record(row.problem, recipe.prompt_key) | {"source": row.source, "meta": row.meta})
                continue
            count = counts[place]
            has_text = isinstance(row, Candidate) and count.left_out.total() < recipe.samples_per_step
            identifier = row.problem.id if isinstance(row, Candidate) else row.id
            text = _record(row.problem, recipe.prompt_key) if has_text and isinstance(row, Candidate) else {}
            _write(left_out[place], {"id": identifier, "reason": reason} | text)
            if count.left_out.total() < _EXAMPLES:
                count.examples.append(f"{identifier}: {reason}")
            count.left_out[row.source] += 1
    return kept


def _rows(recipe: DatasetRecipe, show: Show) -> Iterator[Candidate | Unreadable]:
    """Of all sources.

    Raises:
        InputError: a source has none that is a problem.
    """
    for name, source in recipe.sources.items():
        first, rows, found = None, 0, False
        for row in read_source(name, source, recipe.domain):
            rows += 1
            if isinstance(row, Candidate):
                found = True
            elif first is None:
                first = row
            if rows % _ROWS_SHOWN == 0:
                show(name, rows)
            yield row
        if not found:
            reason = f"{first.id}: {first.reason}" if first is not None else "it is empty"
            raise InputError(f"sources.{name}: none of its {rows} rows is a problem; {reason}")


def _judge(row: Candidate | Unreadable, steps: list[Step], counts: list[Counts]) -> tuple[int, str | None]:
    """The place among `counts` of what leaves a row out, and why; None if nothing does."""
    counts[0].entered += 1
    if isinstance(row, Unreadable):
        return 0, row.reason
    for place, step in enumerate(steps, start=1):
        counts[place].entered += 1
        if reason := step.why_not(row):
            return place, reason
    return len(steps), None


def _record(problem: Problem, prompt_key: str) -> dict[str, Any]:
    """A line that `load_problems` reads."""
    columns = {
        "id": problem.id,
        prompt_key: problem.question,
        "answer": problem.answer,
        "tests": problem.tests,
        "fn_name": problem.fn_name,
        "starter_code": problem.starter_code,
    }
    return {name: value for name, value in columns.items() if value is not None}


def _write(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _report(recipe: DatasetRecipe, counts: list[Counts], kept: Counter[str]) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "problems": kept.total(),
        "by_source": {name: kept[name] for name in recipe.sources},
        "steps": [
            {
                "name": count.name,
                "in": count.entered,
                "out": count.passed,
                "left_out_by_source": dict(sorted(count.left_out.items())),
                "examples": count.examples,
            }
            for count in counts
        ],
    }


def table_of(report: dict[str, Any]) -> Table:
    """A report for people."""
    table = Table("step", "in", "left out", "out", "for example")
    for step in report["steps"]:
        example = step["examples"][0] if step["examples"] else ""
        left_out = step["in"] - step["out"]
        table.add_row(step["name"], f"{step['in']:,}", f"{left_out:,}", f"{step['out']:,}", escape(example))
    return table
