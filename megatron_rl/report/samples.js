// The sample browser: every sample, or the answers to held-out problems before and after a stage.

const PAGE_SIZE = 150;
const VERDICT_TONES = {
  pass: "good",
  wrong: "bad",
  timeout: "warn",
  runtime_error: "bad",
  no_answer: "warn",
  infra_error: "muted",
};
const CHANGES = { solved: "wrong → right", lost: "right → wrong", kept: "right → right", missed: "wrong → wrong" };
const ANY = "";

class SampleBrowser {
  constructor(report) {
    this.stages = report.stages;
    this.samples = report.samples;
    this.written = report.samples_written;
    this.pairs = pairUp(report.samples);
    this.shown = PAGE_SIZE;
    const modes = [{ text: "Every sample" }, ...(this.pairs.length ? [{ text: "Before and after" }] : [])];
    fillTabs(byId("mode-tabs"), modes, 0, (index) => this.setMode(index === 1));
    byId("filters").onsubmit = (event) => event.preventDefault();
    byId("list").onkeydown = (event) => this.moveWithArrows(event);
    this.setMode(false);
  }

  setMode(paired) {
    this.paired = paired;
    this.items = paired ? this.pairs : this.samples;
    const stage = [...new Set(this.items.map((item) => item.stage))];
    const options = {
      stage: stage.map((index) => [String(index), this.stages[index].name]),
      set: distinct(this.items.map((item) => item.set)),
      ...(paired
        ? { change: Object.entries(CHANGES).filter(([key]) => this.pairs.some((pair) => pair.change === key)) }
        : {
            step: distinct(this.items.map((item) => item.step).sort((a, b) => a - b)),
            verdict: distinct(this.items.map((item) => item.verdict)),
          }),
    };
    const choices = Object.entries(options).filter(([, values]) => values.length > 1);
    this.fields = choices.map(([name, values]) => this.select(name, values));
    const search = element("input", {
      type: "search",
      name: "text",
      placeholder: "in prompt and response",
      oninput: () => this.filter(),
    });
    byId("filters").replaceChildren(...this.fields.map((field) => field.label), element("label", {}, "Text", search));
    this.search = search;
    this.filter();
  }

  select(name, values) {
    const options = [[ANY, "all"], ...values].map(([value, text]) => element("option", { value }, text));
    const select = element("select", { name, onchange: () => this.filter() }, ...options);
    return { name, select, label: element("label", {}, name[0].toUpperCase() + name.slice(1), select) };
  }

  filter() {
    const text = this.search.value.toLowerCase();
    const found = text ? this.items.filter((item) => searchable(item).includes(text)) : this.items;
    for (const { name, select } of this.fields) {
      const possible = new Set(this.passing(found, name).map((item) => String(item[name])));
      for (const option of select.options) option.disabled = option.value !== ANY && !possible.has(option.value);
    }
    this.matching = this.passing(found);
    this.shown = PAGE_SIZE;
    this.fillList();
    this.open(this.matching[0] ?? null);
  }

  passing(items, except) {
    const wanted = this.fields.filter(({ name, select }) => name !== except && select.value !== ANY);
    return items.filter((item) => wanted.every(({ name, select }) => String(item[name]) === select.value));
  }

  fillList() {
    const rest = this.matching.length - this.shown;
    const more = () => {
      this.shown += PAGE_SIZE;
      this.fillList();
    };
    const rows = this.matching.slice(0, this.shown).map((item) => element("li", {}, this.row(item)));
    if (rest > 0)
      rows.push(
        element(
          "li",
          {},
          element("button", { type: "button", className: "more", onclick: more }, `${count(rest)} more`),
        ),
      );
    byId("list").replaceChildren(...rows);
    const kind = this.paired ? "held-out problems" : "samples";
    const total =
      this.paired || this.samples.length === this.written ? "" : `; the run wrote ${count(this.written)} samples`;
    byId("count").textContent = `${count(this.matching.length)} of ${count(this.items.length)} ${kind}${total}`;
  }

  row(item) {
    const mark = this.paired
      ? element(
          "span",
          { className: `verdict ${item.change === "solved" ? "good" : item.change === "lost" ? "bad" : "muted"}` },
          CHANGES[item.change],
        )
      : verdict(item);
    const where = [
      this.stages.length > 1 ? this.stages[item.stage].name : null,
      item.set,
      this.paired ? null : `step ${item.step}`,
    ];
    const button = element(
      "button",
      { type: "button", onclick: () => this.open(item) },
      element("span", { className: "id" }, String(item.id)),
      mark,
      element("span", { className: "where" }, where.filter(Boolean).join(" · ")),
    );
    button.item = item;
    return button;
  }

  open(item) {
    for (const button of byId("list").querySelectorAll("button"))
      button.setAttribute("aria-current", String(button.item === item));
    const detail = byId("detail");
    if (item === null) detail.replaceChildren(element("p", { className: "muted" }, "Nothing matches these filters."));
    else detail.replaceChildren(...(this.paired ? pairDetail(item) : sampleDetail(item)));
  }

  moveWithArrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...byId("list").querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
    if (next.item) this.open(next.item);
  }
}

const distinct = (values) =>
  [...new Set(values)].filter((value) => value !== null).map((value) => [String(value), String(value)]);

const searchable = (item) =>
  [item.prompt, item.response, item.before?.response, item.after?.response].filter(Boolean).join("\n").toLowerCase();

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
  return { stage: after.stage, set: after.set, id: after.id, prompt: after.prompt, change, before, after };
}

const verdict = (sample) =>
  element(
    "span",
    { className: `verdict ${VERDICT_TONES[sample.verdict] ?? "muted"}` },
    String(sample.verdict ?? "unverified").replace("_", " "),
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
  ...labelled("Extracted answer", sample.extracted),
  ...labelled("What the verifier said", sample.detail || null),
];

function sampleDetail(sample) {
  return [
    element("h3", {}, String(sample.id), verdict(sample)),
    element("p", { className: "meta" }, `${sample.set}, step ${sample.step}`),
    meta(sample),
    ...labelled("Prompt", sample.prompt),
    ...labelled("Response", sample.response),
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
      ...labelled("Response", sample.response),
      ...outcome(sample),
    );
  return [
    element("h3", {}, String(item.id)),
    ...labelled("Prompt", item.prompt),
    element("div", { className: "pair" }, side("Before", item.before), side("After", item.after)),
  ];
}
