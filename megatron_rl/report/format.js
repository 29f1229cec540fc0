"use strict";
// Small builders and number formats. Text always enters the page as text nodes, never as HTML.

function element(tag, properties = {}, ...children) {
  const { dataset = {}, style = {}, ...rest } = properties;
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function lineSwatch(color, dashArray) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = make("svg", { viewBox: "0 0 18 8" });
  const stroke = { "stroke-width": 2.5, "stroke-dasharray": dashArray, style: `stroke: var(--${color})` };
  svg.append(make("path", { d: "M0 4H18", ...stroke }));
  return svg;
}

const byId = (id) => document.getElementById(id);
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const STAGE_COLORS = 10;
const colorName = (index) => `c${index % STAGE_COLORS}`;

const percent = (value) => (value * 100).toFixed(1) + "%";
const count = (value) => value.toLocaleString("en-US");
const shortened = (name) => (name.length > 28 ? `…${name.slice(-27)}` : name); // where names are paths, ends differ

function duration(seconds) {
  if (seconds < 60) return seconds.toFixed(1) + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function fillTabs(container, labels, selected, onSelect) {
  const buttons = labels.map(({ text, color }, index) =>
    element(
      "button",
      {
        type: "button",
        role: "tab",
        title: text,
        "aria-selected": String(index === selected),
        onclick: () => {
          buttons.forEach((button, i) => button.setAttribute("aria-selected", String(i === index)));
          onSelect(index);
        },
      },
      color ? element("span", { className: "dot", style: { background: `var(--${color})` } }) : null,
      shortened(text),
    ),
  );
  container.replaceChildren(...buttons);
}
