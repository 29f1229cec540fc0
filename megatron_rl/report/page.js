// Unpacks what the page carries and fills it.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function loadPlotly() {
  document.head.append(element("script", { textContent: await unpack("plotly") }));
}

function fillHeader(report) {
  byId("model").textContent = report.model;
  const facts = [...Object.entries(report.backend), ["time", report.seconds ? duration(report.seconds) : null]];
  const shown = facts.filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  byId("facts").replaceChildren(
    ...shown.map(([name, value]) =>
      element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, String(value))),
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

function fillStages(stages) {
  const heads = [
    ["Stage"],
    ["Algorithm"],
    ["Steps", "number"],
    ["Time", "number"],
    ["Held-out accuracy, before → after"],
  ];
  const head = heads.map(([text, className = ""]) => element("th", { className, scope: "col" }, text));
  const rows = stages.map((stage) =>
    element(
      "tr",
      {},
      element("td", {}, stage.name),
      element("td", {}, stage.algorithm.toUpperCase()),
      element("td", { className: "number" }, count(stage.steps)),
      element("td", { className: "number" }, duration(stage.seconds)),
      element(
        "td",
        {},
        ...(stage.accuracies.length
          ? stage.accuracies.map(accuracy)
          : [element("span", { className: "muted" }, "not measured")]),
      ),
    ),
  );
  byId("stages").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
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
  show();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

async function main() {
  const report = JSON.parse(await unpack("report"));
  fillHeader(report);
  fillStages(report.stages);
  document.querySelector("main").hidden = false;
  if (report.samples.length) new SampleBrowser(report);
  else byId("browser").hidden = true;
  await loadPlotly();
  fillCurves(report.stages);
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
