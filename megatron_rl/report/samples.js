// The sample browser: the items of a view, filtered and searched, and the one that is open.

const PAGE_SIZE = 150;
const ANY = "";

class SampleBrowser {
  constructor(views) {
    const titles = views.map(({ title }) => ({ text: title }));
    fillTabs(byId("mode-tabs"), titles, 0, (index) => this.show(views[index]));
    byId("filters").onsubmit = (event) => event.preventDefault();
    byId("list").onkeydown = (event) => this.moveWithArrows(event);
    this.show(views[0]);
  }

  show(view) {
    this.view = view;
    const choices = view.filters.map((filter) => [filter, choicesOf(view.items, filter)]);
    const useful = choices.filter(([, values]) => values.length > 1);
    this.fields = useful.map(([filter, values]) => this.select(filter, values));
    this.search = element("input", {
      type: "search",
      name: "text",
      placeholder: "in prompt and response",
      oninput: () => this.filter(),
    });
    const labels = this.fields.map((field) => field.label);
    byId("filters").replaceChildren(...labels, element("label", {}, "Text", this.search));
    this.filter();
  }

  select({ name, key }, values) {
    const options = [[ANY, "all"], ...values].map(([value, text]) => element("option", { value }, text));
    const select = element("select", { name, onchange: () => this.filter() }, ...options);
    return { key, select, label: element("label", {}, name[0].toUpperCase() + name.slice(1), select) };
  }

  filter() {
    const text = this.search.value.toLowerCase();
    const { items } = this.view;
    const found = text ? items.filter((item) => this.view.text(item).join("\n").toLowerCase().includes(text)) : items;
    for (const { key, select } of this.fields) {
      const possible = new Set(this.passing(found, key).map((item) => String(item[key])));
      for (const option of select.options) option.disabled = option.value !== ANY && !possible.has(option.value);
    }
    this.matching = this.passing(found);
    this.shown = PAGE_SIZE;
    this.fillList();
    this.open(this.matching[0] ?? null);
  }

  passing(items, except) {
    const wanted = this.fields.filter(({ key, select }) => key !== except && select.value !== ANY);
    return items.filter((item) => wanted.every(({ key, select }) => String(item[key]) === select.value));
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
    const { items, kind, note = "" } = this.view;
    byId("count").textContent = `${count(this.matching.length)} of ${count(items.length)} ${kind}${note}`;
  }

  row(item) {
    const button = element(
      "button",
      { type: "button", onclick: () => this.open(item) },
      element("span", { className: "id" }, String(item.id)),
      this.view.mark(item),
      element("span", { className: "where" }, placeOf(item)),
    );
    button.item = item;
    return button;
  }

  open(item) {
    for (const button of byId("list").querySelectorAll("button"))
      button.setAttribute("aria-current", String(button.item === item));
    const detail = byId("detail");
    if (item === null) detail.replaceChildren(element("p", { className: "muted" }, "Nothing matches these filters."));
    else detail.replaceChildren(...this.view.detail(item));
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

function choicesOf(items, { key, labels }) {
  const values = [...new Set(items.map((item) => item[key]))].filter((value) => value !== null);
  if (labels) return Object.entries(labels).filter(([value]) => values.includes(value));
  if (values.every(Number.isFinite)) values.sort((a, b) => a - b);
  return values.map((value) => [String(value), String(value)]);
}
