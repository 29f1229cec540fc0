// The curves: small multiples, all stages overlaid or one stage at a time.

const HELD_OUT = /^validation\/(?:(.+)\/)?accuracy$/;
const CHARTS = [
  { title: "Reward", note: "mean over the samples of a step", metrics: ["train/reward"], smooth: true },
  {
    title: "Held-out accuracy",
    note: "share of problems solved",
    pattern: HELD_OUT,
    percent: true,
    markers: true,
  },
  {
    title: "Response length",
    note: "tokens",
    metrics: ["generation/length_mean", "generation/length_max"],
    labels: ["mean", "max"],
    smooth: true,
  },
  {
    title: "Truncated",
    note: "share of responses cut at the length limit",
    metrics: ["generation/truncated_fraction"],
    percent: true,
    smooth: true,
  },
  { title: "Entropy", note: "of the policy, per token", metrics: ["train/entropy"], smooth: true },
  {
    title: "Mismatch, probability ratio",
    note: "mean exp |policy − rollout log-prob|; 1 is none",
    metrics: ["train/token_mult_prob_error"],
    smooth: true,
  },
  { title: "Mismatch, KL", note: "rollout against policy; 0 is none", metrics: ["train/gen_kl_error"], smooth: true },
  { title: "Loss", note: "of the optimizer step", metrics: ["train/loss"], smooth: true },
  { title: "Gradient norm", note: "before clipping", metrics: ["train/grad_norm"], smooth: true },
  { title: "Learning rate", note: "of the optimizer step", metrics: ["train/lr"] },
  {
    title: "Throughput",
    note: "tokens per second and GPU (or process)",
    metrics: ["performance/tokens_per_sec_per_gpu"],
    smooth: true,
  },
  {
    title: "Packing",
    note: "tokens over the micro-batches' budget; cost of the busiest data-parallel rank above the mean",
    metrics: ["performance/packing_efficiency", "performance/dp_imbalance"],
    labels: ["efficiency", "imbalance"],
    percent: true,
    smooth: true,
  },
  {
    title: "Memory",
    note: "GiB in use after each phase: of the main rank's GPU (or of its processes)",
    metrics: ["memory/after_generation_gib", "memory/after_policy_training_gib", "memory/after_weight_sync_gib"],
  },
];
const PHASES = [
  ["timing/generation", "generation"],
  ["timing/verification_wait", "waiting for verdicts"],
  ["timing/policy_training", "training"],
  ["timing/weight_sync", "weight sync"],
  ["timing/checkpoint", "checkpoint"],
  ["timing/validation", "validation"],
];
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash"];
const DASH_ARRAYS = ["", "1.5 2.5", "5 3", "5 2 1.5 2", "8 3"];
const SMOOTH_FROM_POINTS = 25;

const hasValues = (column) => column !== undefined && column.some((value) => value !== null);

function metricsOf(chart, stages) {
  const present = (name) => stages.some((stage) => hasValues(stage.series[name]));
  if (chart.pattern) {
    const names = new Set(stages.flatMap((stage) => Object.keys(stage.series)));
    return [...names].filter((name) => chart.pattern.test(name) && present(name)).sort();
  }
  return chart.metrics.filter(present);
}

function labelOf(chart, metric) {
  if (chart.labels) return chart.labels[chart.metrics.indexOf(metric)];
  return HELD_OUT.exec(metric)[1] ?? "held-out";
}

function points(stage, metric) {
  const column = stage.series[metric] ?? [];
  const kept = column.map((value, i) => [stage.step[i], value]).filter(([, value]) => value !== null);
  return { x: kept.map(([step]) => step), y: kept.map(([, value]) => value) };
}

function movingAverage(values) {
  const half = Math.max(1, Math.round(values.length / 40)); // centred, so that it does not lag behind
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

function lineTraces(stage, metric, color, dash, chart, name) {
  const { x, y } = points(stage, metric);
  if (!y.length) return [];
  const line = { color, dash, width: 1.8 };
  const marked = chart.markers || y.length < 3;
  const base = { type: "scatter", mode: marked ? "lines+markers" : "lines", x, name, marker: { size: 5, color } };
  if (!chart.smooth || y.length < SMOOTH_FROM_POINTS) return [{ ...base, y, line }];
  const raw = { ...base, y, line: { ...line, width: 1 }, opacity: 0.28 };
  return [raw, { ...base, y: movingAverage(y), line, hoverinfo: "skip" }];
}

function layout(chart) {
  const grid = cssColor("line");
  const axis = {
    gridcolor: grid,
    zeroline: false,
    linecolor: grid,
    tickcolor: grid,
    automargin: true,
    nticks: 6,
    exponentformat: "power",
    separatethousands: true,
  };
  return {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    showlegend: false,
    hovermode: "x unified",
    margin: { l: 40, r: 8, t: 6, b: 26 },
    font: { family: cssColor("sans"), size: 11, color: cssColor("muted") },
    hoverlabel: {
      bgcolor: cssColor("raised"),
      bordercolor: grid,
      font: { color: cssColor("ink"), size: 11 },
      namelength: -1,
    },
    xaxis: { ...axis, showgrid: false },
    yaxis: {
      ...axis,
      fixedrange: true,
      rangemode: chart.percent ? "tozero" : "normal",
      ...(chart.percent && { tickformat: ".0%", hoverformat: ".1%" }),
    },
  };
}

function draw(container, chart, note, legend, traces, extra = {}, height = "200px") {
  const plot = element("div", { className: "plot", style: { height } });
  const keys = legend.map(({ text, color, dash }) => element("span", {}, lineSwatch(color, DASH_ARRAYS[dash]), text));
  container.append(
    element(
      "div",
      { className: "chart", dataset: { chart: chart.title } },
      element("h3", {}, chart.title),
      element("p", {}, note),
      element("div", { className: "legend" }, ...keys),
      plot,
    ),
  );
  Plotly.newPlot(plot, traces, { ...layout(chart), ...extra }, { displayModeBar: false, responsive: true });
}

function drawLines(container, chart, stages, chosen) {
  const shown = chosen === null ? stages : [stages[chosen]];
  const metrics = metricsOf(chart, shown);
  if (!metrics.length) return;
  const overlaid = shown.length > 1;
  const traces = shown.flatMap((stage) =>
    metrics.flatMap((metric, i) => {
      const label = metrics.length > 1 ? labelOf(chart, metric) : "";
      const name = [overlaid ? shortened(stage.name) : "", label].filter(Boolean).join(", ") || chart.title;
      const color = overlaid ? colorName(stages.indexOf(stage)) : colorName(chosen + i);
      return lineTraces(stage, metric, cssColor(color), overlaid ? DASHES[i % DASHES.length] : "solid", chart, name);
    }),
  );
  const legend =
    metrics.length < 2
      ? []
      : metrics.map((metric, i) => ({
          text: labelOf(chart, metric),
          color: overlaid ? "muted" : colorName(chosen + i),
          dash: overlaid ? i % DASHES.length : 0,
        }));
  draw(container, chart, chart.note, legend, traces);
}

function phasesOf(stage) {
  const total = stage.series["timing/total_step_time"];
  const trained = stage.step.map((_, i) => PHASES.some(([metric]) => (stage.series[metric]?.[i] ?? null) !== null));
  const rows = PHASES.map(([metric, label]) => ({
    label,
    y: stage.step.map((_, i) => stage.series[metric]?.[i] ?? 0),
  }));
  if (hasValues(total)) {
    const named = (i) => rows.reduce((sum, row) => sum + row.y[i], 0);
    rows.push({ label: "other", y: stage.step.map((_, i) => Math.max(0, (total[i] ?? 0) - named(i))) });
  }
  const x = stage.step.filter((_, i) => trained[i]);
  return rows.map((row) => ({ ...row, x, y: row.y.filter((_, i) => trained[i]) }));
}

function drawTiming(container, stages, chosen) {
  const shown = (chosen === null ? stages : [stages[chosen]]).filter((stage) => phasesOf(stage)[0].x.length);
  if (!shown.length) return;
  const rowsByStage = shown.map(phasesOf);
  const labels = [...PHASES.map(([, label]) => label), "other"];
  const mean = (row) => (row ? row.y.reduce((sum, value) => sum + value, 0) / row.y.length : 0);
  const present = labels.filter((label) =>
    rowsByStage.some((rows) => mean(rows.find((row) => row.label === label)) > 0),
  );
  const color = (label) => (label === "other" ? "rest" : colorName(labels.indexOf(label)));
  const legend = present.map((label) => ({ text: label, color: color(label), dash: 0 }));
  const chart = { title: "Time per step" };
  if (shown.length > 1) {
    const traces = present.map((label) => ({
      type: "bar",
      orientation: "h",
      name: label,
      marker: { color: cssColor(color(label)) },
      y: shown.map((stage) => stage.name),
      x: rowsByStage.map((rows) => mean(rows.find((row) => row.label === label))),
    }));
    const axes = layout(chart);
    const names = { tickvals: shown.map(({ name }) => name), ticktext: shown.map(({ name }) => shortened(name)) };
    const extra = {
      barmode: "stack",
      bargap: 0.45,
      hovermode: "y unified",
      yaxis: { ...axes.yaxis, ...names, type: "category", autorange: "reversed", showgrid: false },
      xaxis: { ...axes.xaxis, showgrid: true, hoverformat: ".3~r" },
    };
    const height = `${Math.max(200, 40 + 24 * shown.length)}px`;
    draw(container, chart, "mean seconds, by phase", legend, traces, extra, height);
    return;
  }
  const traces = rowsByStage[0]
    .filter((row) => present.includes(row.label))
    .map((row) => ({
      type: "scatter",
      mode: "lines",
      stackgroup: "phases",
      name: row.label,
      x: row.x,
      y: row.y,
      line: { width: 0.5, color: cssColor(color(row.label)) },
      fillcolor: cssColor(color(row.label)),
    }));
  draw(container, chart, "seconds, by phase", legend, traces);
}

function drawCharts(stages, chosen) {
  const container = byId("charts");
  container.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
  container.replaceChildren();
  for (const chart of CHARTS) drawLines(container, chart, stages, chosen);
  drawTiming(container, stages, chosen);
}
