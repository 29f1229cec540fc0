"""The report in a browser: headless Chromium, without a network, as a reader uses it."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright
from test_report import HOSTILE, make_evaluation, sample, write_lines

from megatron_rl.report import write_report

STEPS = 1000
VERDICTS = ["pass", "wrong", "timeout", "runtime_error", "no_answer", "infra_error"]
LONG_NAME = "a_run_whose_name_tells_all_of_its_settings_lr_1e-6_temperature_0.6_seed_1"
WINDOW = ViewportSize(width=1400, height=900)
Open = Callable[[Path], Page]


def metrics(steps: int, level: float) -> list[dict[str, Any]]:
    """What a stage logs, a validation at every tenth of it."""
    rows = []
    for step in range(steps + 1):
        wave = round(level + 0.1 * math.sin(step), 6)
        row = {"step": step, "time": 1000.0 + step, "train/reward": wave, "train/entropy": round(1 - wave, 6)}
        row |= {"generation/length_mean": 900 + step, "train/loss": -wave, "train/grad_norm": 1 + wave}
        row |= {"timing/generation": 2.0, "timing/policy_training": 1.0, "timing/total_step_time": 3.5}
        row |= {f"other/metric_{i}": round(wave * i, 6) for i in range(40)}
        if step % (steps // 10) == 0:
            row["validation/math/accuracy"] = round(0.2 + 0.5 * step / steps, 6)
        rows.append(row)
    return rows


def train_samples() -> list[dict[str, Any]]:
    """The first half passes, the other verdicts take turns; one response has a word of its own, one is hostile."""
    found = []
    for step in range(0, STEPS + 1, 20):
        for i in range(10):
            verdict = "pass" if i < 5 else VERDICTS[1:][i - 5]
            found.append(sample(step, "train", f"{step}-{i}", verdict, response=f"{step} and {i}, so \\boxed{{4}}"))
    found[7] |= {"response": "a quokka"}
    found[8] |= {"id": HOSTILE, "prompt": HOSTILE, "response": HOSTILE, "extracted": HOSTILE, "detail": HOSTILE}
    return found


HELD_OUT = {"solved": 3, "lost": 1, "kept": 2, "missed": 4}


def held_out_samples() -> list[dict[str, Any]]:
    found = []
    for change, problems in HELD_OUT.items():
        before, after = change in ("lost", "kept"), change in ("solved", "kept")
        for step, is_right in ((0, before), (STEPS, after)):
            verdict = "pass" if is_right else "wrong"
            found += [sample(step, "math", f"{change} {i}", verdict, f"at {step}") for i in range(problems)]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of 1,000 steps, a pipeline of two stages, an evaluation on two benchmarks."""
    root = tmp_path_factory.mktemp("runs")
    run, pipeline = root / "long", root / LONG_NAME
    write_lines(run / "metrics.jsonl", metrics(STEPS, 0.5))
    write_lines(run / "samples/step_1.jsonl", train_samples())
    write_lines(run / "samples/validation_math.jsonl", held_out_samples())
    for stage, level in (("math", 0.2), ("code", 0.7)):
        write_lines(pipeline / stage / "metrics.jsonl", metrics(60, level))
        write_lines(pipeline / stage / "samples/step_1.jsonl", [sample(1, "train", stage)])
    return [run, pipeline, make_evaluation(root / "model", {"aime24": [0, 1, 2, 4], "sums": [4, 4]})]


@pytest.fixture(scope="module")
def report(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them on one page."""
    return write_report(*folders, out=tmp_path_factory.mktemp("report") / "all.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """Errors and warnings of pages, and whatever they asked a network for."""
    return []


@pytest.fixture(scope="module")
def open_report(browser: Browser, complaints: list[str]) -> Iterator[Open]:
    context = browser.new_context(offline=True, color_scheme="light", viewport=WINDOW)
    context.set_default_timeout(60_000)  # a busy machine is no failure

    def open_one(path: Path) -> Page:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=true]")
        return page

    yield open_one
    context.close()


@pytest.fixture(autouse=True)
def nothing_goes_wrong_in_the_page(complaints: list[str]) -> Iterator[None]:
    complaints.clear()
    yield
    assert not complaints


@pytest.fixture(scope="module")
def opened(open_report: Open, report: Path) -> Page:
    return open_report(report)


@pytest.fixture
def page(opened: Page) -> Page:
    """The page of all folders as it opens, all filters off."""
    opened.set_viewport_size(WINDOW)
    opened.emulate_media(color_scheme="light")
    tab(opened, "Every sample")
    return opened


def traces(page: Page, chart: str) -> list[dict[str, Any]]:
    """What a chart draws: x, y, name and color of each line."""
    return page.eval_on_selector(
        f"[data-chart='{chart}'] .plot",
        "plot => plot.data.map(({ x, y, name, line, opacity }) => ({ x, y, name, color: line.color, opacity }))",
    )


def listed(page: Page) -> list[str]:
    """Ids of all items in the browser's list."""
    for _ in range(page.locator("#list .more").count() * 10):
        if page.locator("#list .more").count():
            page.click("#list .more")
    return page.locator("#list .id").all_text_contents()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_a_thousand_steps_are_drawn_as_they_were_written(open_report: Open, folders: list[Path]) -> None:
    path = write_report(folders[0])
    assert path == folders[0] / "report.html"
    assert path.stat().st_size < 5_000_000
    page = open_report(path)
    rows = metrics(STEPS, 0.5)
    raw, smooth = traces(page, "Reward")
    assert (raw["x"], raw["y"]) == ([row["step"] for row in rows], [row["train/reward"] for row in rows])
    assert max(smooth["y"]) - min(smooth["y"]) < 0.1 < max(raw["y"]) - min(raw["y"])
    (accuracy,) = traces(page, "Held-out accuracy")
    assert accuracy["x"] == list(range(0, STEPS + 1, 100))
    charts = page.locator(".chart h3").all_text_contents()
    expected = ["Reward", "Held-out accuracy", "Response length", "Entropy", "Loss", "Gradient norm", "Time per step"]
    assert charts == expected
    lines = page.eval_on_selector_all(
        ".chart path.js-line", "paths => paths.map(path => path.getAttribute('d').length)"
    )
    assert len(lines) == 14  # smoothed ones twice, three phases of the time
    assert min(lines) > 10
    assert page.locator("#stage-tabs button").count() == 0
    assert page.locator("h2:visible").all_text_contents() == ["Stages", "Curves", "Samples"]


def test_runs_are_overlaid_and_each_can_be_picked(page: Page) -> None:
    names = ["long", f"{LONG_NAME}/code", f"{LONG_NAME}/math"]
    shortened = ["long", *(f"…{name[-27:]}" for name in names[1:])]
    assert page.locator("#stage-tabs button").all_text_contents() == ["All stages", *shortened]
    dots = page.eval_on_selector_all(
        "#stage-tabs .dot", "dots => dots.map(dot => getComputedStyle(dot).backgroundColor)"
    )
    overlaid = [trace for trace in traces(page, "Reward") if trace.get("opacity")]
    assert [len(trace["x"]) for trace in overlaid] == [STEPS + 1, 61, 61]
    assert [f"rgb({', '.join(str(part) for part in bytes.fromhex(t['color'][1:]))})" for t in overlaid] == dots
    assert [trace["name"] for trace in overlaid] == shortened
    tab(page, shortened[2])
    (raw, _) = traces(page, "Reward")
    assert raw["y"] == [row["train/reward"] for row in metrics(60, 0.2)]
    tab(page, "All stages")
    assert len(traces(page, "Reward")) == 6


def test_stages_and_benchmarks_stand_in_tables(page: Page) -> None:
    cells = page.locator("#stages tbody tr").first.locator("td").all_text_contents()
    assert cells == ["long", "", "1,000", "16 min 40 s", "900 → 1,900", "0.500 → 0.417", "math20.0% → 70.0%+50.0"]
    assert page.locator("#stages tbody tr").count() == 3
    rows = [row.locator("td").all_text_contents() for row in page.locator("#benchmarks tbody tr").all()]
    assert page.locator("#benchmarks th").all_text_contents() == ["Model", "AIME24", "sums"]
    assert rows[0] == ["model/models/one", "43.8 ± 21.3avg@4", "100.0 ± 0.0avg@4"]
    assert ["AceReason-Nemotron-14B (paper)", "78.6", ""] in rows
    assert len(rows) == 5


def test_the_verdict_filter_leaves_exactly_its_samples(page: Page) -> None:
    page.select_option("[name=run]", "long")
    page.select_option("[name=set]", "train")
    written = train_samples()
    for verdict in VERDICTS:
        page.select_option("[name=verdict]", verdict)
        expected = [one["id"] for one in written if one["verdict"] == verdict]
        assert page.inner_text("#count").startswith(f"{len(expected)} of ")
        assert listed(page) == expected
        assert set(page.locator("#list .verdict").all_text_contents()) == {verdict.replace("_", " ")}
    page.select_option("[name=step]", "40")
    assert listed(page) == ["40-9"]
    # What nothing would be left of cannot be chosen.
    page.select_option("[name=verdict]", "")
    page.select_option("[name=step]", "")
    page.select_option("[name=set]", "math")
    assert page.is_disabled("[name=verdict] option[value=timeout]")


def test_text_is_searched_and_shown_as_text(page: Page) -> None:
    page.fill("[name=text]", "QUOKKA")
    assert listed(page) == ["0-7"]
    assert page.inner_text("#detail .text >> nth=1") == "a quokka"
    page.fill("[name=text]", "window.hacked")
    assert page.inner_text("#count").startswith("1 of ")
    texts = page.locator("#detail .text").all_text_contents()
    assert texts == [HOSTILE] * 4
    assert page.locator("#detail :is(img, script)").count() == 0
    assert page.evaluate("window.hacked") is None
    page.fill("[name=text]", "nowhere to be found")
    assert listed(page) == []
    assert page.inner_text("#detail") == "Nothing matches these filters."


def test_held_out_problems_are_seen_before_and_after(page: Page) -> None:
    tab(page, "Before and after")
    assert page.inner_text("#count") == "10 of 10 held-out problems"
    for change, problems in HELD_OUT.items():
        page.select_option("[name=change]", change)
        assert listed(page) == [f"{change} {i}" for i in range(problems)]
    page.select_option("[name=change]", "solved")
    assert page.locator("#detail h4").all_text_contents() == ["Before, step 0wrong", f"After, step {STEPS}pass"]
    assert page.locator("#detail .pair .text").all_text_contents() == ["at 0", f"at {STEPS}"]
    tab(page, "Every sample")
    assert len(listed(page)) == len(train_samples()) + len(held_out_samples()) + 2 + 6 * 4


def test_problems_of_benchmarks_have_their_pass_rates_and_samples(page: Page) -> None:
    tab(page, "Problems")
    assert listed(page) == ["aime24-0", "aime24-1", "aime24-2", "aime24-3", "sums-0", "sums-1"]
    bars = page.eval_on_selector_all(
        "#list .bar", "bars => bars.map(bar => bar.firstChild.offsetWidth / bar.offsetWidth)"
    )
    assert bars == pytest.approx([0, 0.25, 0.5, 1, 1, 1], abs=0.03)
    page.select_option("[name=passed]", "sometimes")
    assert listed(page) == ["aime24-1", "aime24-2"]
    assert "4 samplesmean length 100 tokensmajority wrong" in page.text_content("#detail")
    assert page.locator("#detail summary").all_text_contents() == ["pass4", "wrong5", "wrong5", "wrong5"]
    response = page.get_by_text("aime24-1, sample 2")
    assert not response.is_visible()
    page.locator("#detail summary").nth(2).click()
    assert response.is_visible()
    page.select_option("[name=passed]", "")
    page.fill("[name=text]", "aime24-2, sample 3")
    assert listed(page) == ["aime24-2"]


def test_arrow_keys_go_through_the_list(page: Page) -> None:
    page.locator("#list button").first.focus()
    for key, id in (("ArrowDown", "0-1"), ("ArrowDown", "0-2"), ("ArrowUp", "0-1")):
        page.keyboard.press(key)
        assert page.text_content("#list [aria-current=true] .id") == id
        assert page.text_content("#detail h3").startswith(id)


def test_charts_follow_the_color_scheme(page: Page) -> None:
    def colors() -> list[str]:
        line = traces(page, "Reward")[0]["color"]
        return [line, page.eval_on_selector("[data-chart=Reward] .plot", "plot => plot.layout.font.color")]

    light = colors()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("color => document.querySelector('.plot').layout?.font.color !== color", arg=light[1])
    assert all(before != after for before, after in zip(light, colors(), strict=True))


@pytest.mark.parametrize("width", [390, 800])
def test_nothing_sticks_out_of_a_narrow_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for view in ("Every sample", "Before and after", "Problems"):
        tab(page, view)
        # The charts follow a moment later.
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)


def test_an_evaluation_alone_has_no_curves(open_report: Open, folders: list[Path]) -> None:
    page = open_report(write_report(folders[2]))
    assert page.locator("h2:visible").all_text_contents() == ["Benchmarks", "Samples"]
    assert page.locator("#mode-tabs button").all_text_contents() == ["Every sample", "Problems"]
    assert page.locator("#filters select").evaluate_all("all => all.map(({ name }) => name)") == ["set", "verdict"]
