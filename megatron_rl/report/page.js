// Unpacks what the page carries and fills it.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function loadPlotly() {
  document.head.append(element("script", { textContent: await unpack("plotly") }));
}

function fillHeader(report) {
  byId("eyebrow").textContent = report.stages.length ? "Training report" : "Evaluation report";
  byId("model").textContent = report.model;
  const facts = [...Object.entries(report.backend), ["time", report.seconds ? duration(report.seconds) : ""]];
  const shown = facts.filter(([, value]) => value);
  byId("facts").replaceChildren(
    ...shown.map(([name, value]) =>
      element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, value)),
    ),
  );
}

function accuracy({ set, before, after }) {
  const tone = after > before ? "good" : after < before ? "bad" : "muted";
  const points = (after - before) * 100;
  const track = element(
    "div",
    { className: `track ${tone}`, title: `${percent(before)} before, ${percent(after)} after` },
    element("i", { style: { left: percent(Math.min(before, after)), width: percent(Math.abs(after - before)) } }),
    element("b", { style: { left: percent(before) } }),
    element("b", { style: { left: percent(after) } }),
  );
  return element(
    "div",
    { className: "accuracy" },
    element("span", { className: "set" }, set),
    element("span", {}, `${percent(before)} → ${percent(after)}`),
    element("span", { className: tone }, (points < 0 ? "−" : "+") + Math.abs(points).toFixed(1)),
    track,
  );
}

function fillTable(table, heads, rows) {
  const head = heads.map(([text, className = ""]) => element("th", { className, scope: "col" }, text));
  byId(table).replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  byId(table).closest("section").hidden = !rows.length;
}

const cell = (className, ...content) => element("td", { className }, ...content);
const numberCell = (...content) => cell("number", ...content);

function fillStages(stages) {
  const heads = [
    ["Stage"],
    ["Algorithm"],
    ["Steps", "number"],
    ["Time", "number"],
    ["Response tokens\nfirst → last", "number"],
    ["Entropy\nfirst → last", "number"],
    ["Held-out accuracy\nbefore → after"],
  ];
  const change = (ends, format) => (ends ? `${format(ends.before)} → ${format(ends.after)}` : "");
  const rows = stages.map((stage) =>
    element(
      "tr",
      {},
      cell("name", stage.name),
      cell("", stage.algorithm.toUpperCase()),
      numberCell(count(stage.steps)),
      numberCell(duration(stage.seconds)),
      numberCell(change(stage.response_length, (tokens) => count(Math.round(tokens)))),
      numberCell(change(stage.entropy, (nats) => nats.toFixed(3))),
      cell(
        "accuracies",
        ...(stage.accuracies.length
          ? stage.accuracies.map(accuracy)
          : [element("span", { className: "muted" }, "not measured")]),
      ),
    ),
  );
  fillTable("stages", heads, rows);
}

function fillBenchmarks({ evaluations, benchmarks, reported }) {
  const small = (text) => element("small", {}, text);
  const own = ({ accuracy, accuracy_error: error, samples_per_prompt: k }) =>
    numberCell(`${(accuracy * 100).toFixed(1)} ± ${(error * 100).toFixed(1)}`, small(`avg@${k}`));
  const row = (className, name, cells) => element("tr", { className }, name, ...cells);
  const columns = (figures, fill) =>
    benchmarks.map(({ name }) => (name in figures ? fill(figures[name]) : numberCell()));
  const rows = [
    ...evaluations.map(({ name, model, figures }) =>
      row("", cell("name", name, small(model)), columns(figures, own)),
    ),
    ...Object.entries(reported).map(([name, figures]) =>
      row("muted", cell("name", name), columns(figures, (value) => numberCell(value.toFixed(1)))),
    ),
  ];
  fillTable("benchmarks", [["Model"], ...benchmarks.map(({ title }) => [title, "number"])], rows);
}

function fillCurves(stages) {
  const single = stages.length === 1;
  let chosen = single ? 0 : null;
  const show = () => drawCharts(stages, chosen);
  const labels = [
    { text: "All stages" },
    ...stages.map(({ name }, index) => ({ text: name, color: colorName(index) })),
  ];
  if (!single)
    fillTabs(byId("stage-tabs"), labels, 0, (index) => {
      chosen = index ? index - 1 : null;
      show();
    });
  const thinned = stages.filter((stage) => stage.step.length < stage.logged);
  byId("thinned").textContent = thinned
    .map((stage) => `${stage.name}: ${count(stage.step.length)} of ${count(stage.logged)} steps are drawn`)
    .join("; ");
  show();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

async function main() {
  const report = JSON.parse(await unpack("report"));
  fillHeader(report);
  fillStages(report.stages);
  fillBenchmarks(report);
  document.querySelector("main").hidden = false;
  const views = viewsOf(report);
  if (views.length) new SampleBrowser(views);
  byId("browser").hidden = !views.length;
  byId("curves").hidden = !report.stages.length;
  if (report.stages.length) {
    await loadPlotly();
    fillCurves(report.stages);
  }
  document.documentElement.dataset.ready = "true";
}

main().catch((error) => {
  const old = typeof DecompressionStream === "undefined" || typeof Map.groupBy === "undefined";
  byId("failure").textContent = old
    ? "This browser is too old for the report: use one from 2024 or later."
    : `The report could not be drawn: ${error.message}`;
  byId("failure").hidden = false;
  throw error;
});
