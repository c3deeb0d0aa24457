// The pages without pictures: what failed and why, and how the run is distributed.

const SVG = "http://www.w3.org/2000/svg";

// Every text goes in as text: a key that looks like markup stays a key.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });

const share = (value) => (value >= 0.0995 ? Math.round(value * 100) : value >= 0.001 ? (value * 100).toFixed(1) : (value * 100).toPrecision(1)) + " %";

// The next number an axis can end with, even so that its half is whole.
function roundUp(value) {
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(value)) - 1);
  return Math.ceil(value / unit / 2) * 2 * unit;
}

function histogram(spec, choose) {
  const panel = element("section", { class: "panel" }, element("h2", {}, spec.title), element("p", {}, spec.note));
  const [width, height, left, bottom] = [420, 140, 36, 22];
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height + bottom}`, role: "img", "aria-label": spec.title });
  const top = roundUp(Math.max(2, ...spec.counts));
  const step = (width - left) / spec.counts.length;
  const counted = spec.filter === "segments"; // whole numbers: a bin is named by those that fall into it
  const last = (at) => spec.edges[at + 1] - 1;
  const range = (at) => (!counted ? `${spec.ticks[at]} – ${spec.ticks[at + 1]}` : last(at) > spec.edges[at] ? `${spec.edges[at]} – ${last(at)}` : spec.ticks[at]);
  for (const part of [0, 0.5, 1]) {
    const y = 10 + (height - 10) * (1 - part);
    svg.append(drawing("line", { x1: left, x2: width, y1: y, y2: y }));
    svg.append(drawing("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, short.format(top * part)));
  }
  spec.counts.forEach((count, at) => {
    const bar = ((height - 10) * count) / top;
    const bin = drawing("g", spec.filter ? { class: "bin", tabindex: 0, role: "button" } : { class: "bin" });
    bin.append(drawing("title", {}, `${range(at)}: ${whole.format(count)}`));
    bin.append(drawing("rect", { class: "hit", x: left + at * step, y: 0, width: step, height }));
    bin.append(drawing("rect", { class: "bar", x: left + at * step + 1, y: height - bar, width: Math.max(1, step - 2), height: bar, rx: Math.min(2, bar) }));
    if (spec.filter) {
      const go = () => choose(spec.filter, spec.edges[at], counted ? last(at) : spec.edges[at + 1]);
      bin.addEventListener("click", go);
      bin.addEventListener("keydown", (event) => event.key === "Enter" && go());
    }
    svg.append(bin);
  });
  spec.ticks.forEach((tick, at) => {
    const end = at === spec.counts.length;
    if (at % spec.every || (counted && end)) return;
    const x = left + (counted ? at + 0.5 : at) * step;
    svg.append(drawing("text", { x, y: height + 16, "text-anchor": end ? "end" : "middle" }, counted ? range(at) : tick));
  });
  panel.append(svg);
  return panel;
}

function statuses(counts) {
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  const table = element("table", {}, element("tr", {}, element("th", {}, "status"), element("th", { class: "number" }, "samples"), element("th", { class: "number" }, "share")));
  for (const [status, count] of counts)
    table.append(element("tr", {}, element("td", {}, status), element("td", { class: "number" }, whole.format(count)), element("td", { class: "number" }, share(count / Math.max(1, total)))));
  return element("section", { class: "panel" }, element("h2", {}, "Samples"), element("p", {}, "every sample of the run, by what became of it"), table);
}

function fillStatistics(box, choose) {
  box.append(statuses(index.statuses), ...index.histograms.map((spec) => histogram(spec, choose)));
}

function fillFailures(box, items) {
  const failed = index.statuses.filter(([status]) => status !== "ok");
  if (!failed.length) {
    box.append(element("p", { class: "panel" }, "Nothing failed."));
    return;
  }
  const total = failed.reduce((sum, [, count]) => sum + count, 0);
  const reasons = element("div", { class: "reasons" });
  for (const [status, count] of failed) reasons.append(element("span", { class: "panel" }, status, element("b", {}, whole.format(count))));
  const table = element("table", {}, element("tr", {}, ...["reason", "key", "shard", "index", "error"].map((name) => element("th", {}, name))));
  for (const item of items)
    table.append(
      element("tr", {}, element("td", {}, item.status), element("td", {}, element("code", {}, item.key)), element("td", {}, element("code", {}, item.shard)),
        element("td", {}, String(item.index)), element("td", {}, item.error || "")),
    );
  const note = items.length < total ? `${whole.format(items.length)} of ${whole.format(total)} shown` : `${whole.format(total)} in all`;
  box.append(reasons, element("section", { class: "panel" }, element("h2", {}, "Failed samples"), element("p", {}, note), table));
}
