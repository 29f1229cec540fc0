// What the browser lists: every sample, held-out problems before and after a stage, or the problems of benchmarks.
// An item is of an entry (the name of a stage or an evaluation), a set and an id.

const VERDICT_TONES = {
  pass: "good",
  wrong: "bad",
  timeout: "warn",
  runtime_error: "bad",
  no_answer: "warn",
  infra_error: "muted",
};
const CHANGES = { solved: "wrong → right", lost: "right → wrong", kept: "right → right", missed: "wrong → wrong" };
const CHANGE_TONES = { solved: "good", lost: "bad" };
const PASSED = { always: "every time", sometimes: "sometimes", never: "never" };

function viewsOf(report) {
  const names = [...report.stages, ...report.evaluations].map(({ name }) => name);
  const named = (item) => ({ ...item, entry: names.length > 1 ? names[item.stage] : null });
  const samples = report.samples.map(named);
  const entry = { name: report.evaluations.length ? "run" : "stage", key: "entry" };
  const set = { name: "set", key: "set" };
  const views = [
    {
      title: "Every sample",
      kind: "samples",
      note: samples.length < report.samples_written ? `; ${count(report.samples_written)} were written` : "",
      items: samples,
      filters: [entry, set, { name: "step", key: "step" }, { name: "verdict", key: "verdict" }],
      mark: verdict,
      text: (sample) => [sample.prompt, sample.response],
      detail: sampleDetail,
    },
    {
      title: "Before and after",
      kind: "held-out problems",
      items: pairUp(samples),
      filters: [entry, set, { name: "change", key: "change", labels: CHANGES }],
      mark: ({ change }) => marked(CHANGE_TONES[change], CHANGES[change]),
      text: ({ prompt, before, after }) => [prompt, before.response, after.response],
      detail: pairDetail,
    },
    {
      title: "Problems",
      kind: "problems of benchmarks",
      items: problemsOf(report, samples).map(named),
      filters: [entry, set, { name: "passed", key: "passed", labels: PASSED }],
      mark: passRate,
      text: ({ prompt, shown }) => [prompt, ...shown.map((sample) => sample.response)],
      detail: problemDetail,
    },
  ];
  return views.filter(({ items }) => items.length);
}

function pairUp(samples) {
  const sets = Map.groupBy(
    samples.filter((sample) => sample.set !== "train"),
    (sample) => `${sample.stage} ${sample.set}`,
  );
  return [...sets.values()].flatMap((ofSet) => {
    const steps = ofSet.map((sample) => sample.step);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    if (first === last) return [];
    const key = (sample) => `${sample.id} ${sample.sample}`;
    const after = new Map(ofSet.filter(({ step }) => step === last).map((sample) => [key(sample), sample]));
    const before = ofSet.filter((sample) => sample.step === first && after.has(key(sample)));
    return before.map((sample) => pair(sample, after.get(key(sample))));
  });
}

function pair(before, after) {
  const [was, is] = [before.verdict === "pass", after.verdict === "pass"];
  const change = was ? (is ? "kept" : "lost") : is ? "solved" : "missed";
  return { ...after, step: null, sample: null, change, before, after };
}

function problemsOf({ stages, evaluations }, samples) {
  const key = ({ stage, set, id }) => JSON.stringify([stage, set, id]);
  const samplesOf = Map.groupBy(samples, key);
  return evaluations.flatMap(({ problems }, index) =>
    problems.map((problem) => {
      const stage = stages.length + index;
      const shown = samplesOf.get(key({ ...problem, stage })) ?? [];
      const passed = problem.pass_rate === 1 ? "always" : problem.pass_rate > 0 ? "sometimes" : "never";
      return { ...problem, stage, passed, shown, prompt: shown[0]?.prompt ?? null };
    }),
  );
}

function placeOf({ entry, set, step = null, sample = null }) {
  // A benchmark has no steps.
  const which = step !== null ? `step ${step}` : sample !== null ? `sample ${sample}` : null;
  return [entry && shortened(entry), set, which].filter(Boolean).join(" · ");
}

const marked = (tone, text) => element("span", { className: `verdict ${tone ?? "muted"}` }, text);

const verdict = (sample) =>
  marked(VERDICT_TONES[sample.verdict], String(sample.verdict ?? "unverified").replace("_", " "));

const passRate = ({ pass_rate: share }) =>
  element(
    "span",
    { className: "rate" },
    element("span", { className: "bar" }, element("i", { style: { width: percent(share) } })),
    element("b", {}, percent(share)),
  );

function meta(sample) {
  const number = (value) => (typeof value === "number" ? String(Math.round(value * 1e4) / 1e4) : value);
  const facts = [
    ["reward", sample.reward],
    ["advantage", sample.advantage],
    ["tokens", sample.response_tokens],
    ["policy version", sample.policy_version],
    ["cut at the limit", sample.truncated ? "yes" : null],
  ];
  const known = facts
    .filter(([, value]) => value !== null)
    .map(([name, value]) => element("span", {}, `${name} ${number(value)}`));
  return element("p", { className: "meta" }, ...known);
}

function text(content) {
  const node = element("div", { className: "text" });
  const end = content.lastIndexOf("</think>");
  if (end < 0) node.append(content);
  else node.append(element("span", { className: "reasoning" }, content.slice(0, end + 8)), content.slice(end + 8));
  return node;
}

const labelled = (label, content) =>
  content === null ? [] : [element("p", { className: "label" }, label), text(String(content))];

const outcome = (sample) => [
  ...labelled("Response", sample.response),
  ...labelled("Extracted answer", sample.extracted),
  ...labelled("What the verifier said", sample.detail || null),
];

function sampleDetail(sample) {
  return [
    element("h3", {}, String(sample.id), verdict(sample)),
    element("p", { className: "meta" }, placeOf(sample)),
    meta(sample),
    ...labelled("Prompt", sample.prompt),
    ...outcome(sample),
  ];
}

function pairDetail(item) {
  const side = (title, sample) =>
    element(
      "div",
      {},
      element("h4", {}, `${title}, step ${sample.step}`, verdict(sample)),
      meta(sample),
      ...outcome(sample),
    );
  return [
    element("h3", {}, String(item.id)),
    ...labelled("Prompt", item.prompt),
    element("div", { className: "pair" }, side("Before", item.before), side("After", item.after)),
  ];
}

function problemDetail(problem) {
  const facts = [
    `${count(problem.samples)} samples`,
    `mean length ${count(Math.round(problem.length_mean))} tokens`,
    problem.majority === null ? null : `majority ${["wrong", "right"][problem.majority] ?? "tied"}`,
    problem.shown.length < problem.samples ? `${problem.shown.length} of them on this page` : null,
  ];
  const answers = problem.shown.map((sample) =>
    element(
      "details",
      {},
      element("summary", {}, verdict(sample), String(sample.extracted ?? "no answer")),
      meta(sample),
      ...outcome(sample),
    ),
  );
  return [
    element("h3", {}, String(problem.id), passRate(problem)),
    element("p", { className: "meta" }, placeOf(problem)),
    element("p", { className: "meta" }, ...facts.filter(Boolean).map((fact) => element("span", {}, fact))),
    ...labelled("Prompt", problem.prompt),
    element("p", { className: "label" }, "Samples"),
    ...answers,
  ];
}
