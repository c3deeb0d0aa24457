// The grid: pages, filters, sorting; pictures are drawn when they come near the screen and dropped when they leave it.

const CHUNK = 60; // cards added at a time
const DRAWING = 3; // pictures decoded at once: more only makes the first ones late
const PAGES = { all: "order", worst: "quality-up", best: "quality-down", random: "random", failures: null, statistics: null };

const items = index.items.map((item, number) => ({ ...item, levels: item.maps, number, luck: (Math.imul(number + 1, 2654435761) >>> 0) / 2 ** 32 }));
const failures = items.filter((item) => item.status !== "ok");
const sampled = items.filter((item) => item.random);
const state = { page: "all" };
const look = { tint: 0.5, outline: true, level: index.level };
const quality = (item) => item.maps[0]?.quality ?? null;
const segments = (item) => item.maps[0]?.count ?? null;
let visible = [];

const orders = {
  order: (one, other) => one.number - other.number,
  key: (one, other) => one.key.localeCompare(other.key, "en", { numeric: true }),
  random: (one, other) => one.luck - other.luck,
  "quality-up": by(quality, 1),
  "quality-down": by(quality, -1),
  "segments-up": by(segments, 1),
  "segments-down": by(segments, -1),
};

// Samples without the value come last, whichever way the rest is sorted.
function by(value, sign) {
  return (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };
}

const limit = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));

function wanted() {
  const text = $("search").value.trim().toLowerCase();
  const status = $("status").value;
  const category = $("category").value;
  const range = { quality: [limit("quality-min", -Infinity), limit("quality-max", Infinity)], segments: [limit("segments-min", -Infinity), limit("segments-max", Infinity)] };
  const open = ([low, high]) => low === -Infinity && high === Infinity;
  const inside = (value, [low, high]) => open([low, high]) || (value !== null && value >= low && value <= high);
  return (item) =>
    (!text || item.key.toLowerCase().includes(text)) && (!status || item.status === status) && (!category || item.categories.includes(category)) &&
    inside(quality(item), range.quality) && inside(segments(item), range.segments);
}

function refresh() {
  const pictures = PAGES[state.page] !== null;
  for (const id of ["grid", "more", "filters"]) $(id).hidden = !pictures;
  $("failures").hidden = state.page !== "failures";
  $("statistics").hidden = state.page !== "statistics";
  for (const button of $("pages").children) button.toggleAttribute("aria-current", button.dataset.page === state.page);
  const pool = state.page === "random" ? sampled : items;
  const ranked = state.page === "worst" || state.page === "best" ? pool.filter((item) => item.maps.length) : pool;
  visible = pictures ? ranked.filter(wanted()).sort(orders[$("sort").value]) : [];
  const category = (look.category = $("category").value);
  if (category && $("sort").value === "order") // of a category, what shows it best comes first
    visible.sort((one, other) => other.exemplar.includes(category) - one.exemplar.includes(category));
  $("count").textContent = `${whole.format(visible.length)} of ${whole.format(ranked.length)}`;
  $("empty").hidden = !pictures || visible.length > 0;
  watcher.disconnect();
  waiting.length = 0;
  $("grid").replaceChildren();
  extend();
  writeAddress();
}

function turnTo(page) {
  state.page = page;
  if (PAGES[page]) $("sort").value = PAGES[page];
  scrollTo(0, 0);
  refresh();
}

// ---- the address: what is shown, so that a link shows it to others

const KEPT = ["search", "sort", "status", "category", "quality-min", "quality-max", "segments-min", "segments-max", "level"];
let opening = true; // nothing is written before what was asked for is shown

function writeAddress() {
  if (opening) return;
  const kept = new URLSearchParams();
  const usual = { sort: PAGES[state.page], level: index.level === null ? "0" : String(index.level) };
  for (const id of KEPT) if ($(id).value !== (usual[id] ?? "")) kept.set(id, $(id).value);
  const sample = dialog.open ? visible[shown.place] : undefined;
  if (sample && state.page !== "all") kept.set("page", state.page);
  const text = kept.size ? "?" + kept : "";
  history.replaceState(null, "", `#/${sample ? "sample/" + sample.number : state.page}${text}`); // a slash: no element's name
}

function readAddress() {
  const [, asked, number, text] = /^#\/(\w+)(?:\/(\d+))?(?:\?(.*))?$/.exec(location.hash) ?? [];
  const kept = new URLSearchParams(text);
  const page = asked === "sample" ? kept.get("page") : asked;
  opening = true;
  $("filters").reset();
  turnTo(offered.includes(page) ? page : "all");
  for (const id of KEPT) if (kept.has(id)) $(id).value = kept.get(id);
  for (const id of ["sort", "status", "category"]) $(id).value ||= id === "sort" ? PAGES[state.page] ?? "order" : "";
  if (index.level === null) refresh();
  else showLevel(kept.has("level") ? Number($("level").value) : index.level);
  const place = asked === "sample" ? visible.indexOf(items[number]) : -1;
  opening = false;
  if (place >= 0) openSample(place);
  else if (dialog.open) dialog.close();
  else writeAddress();
}

addEventListener("hashchange", readAddress);

async function copyKeys() {
  const text = visible.map((item) => item.key).join("\n");
  const button = $("copy-keys");
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a browser that keeps the clipboard from pages of a disk
    const area = element("textarea", {}, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = `Copied ${whole.format(visible.length)}`;
  setTimeout(() => { button.textContent = "Copy keys"; }, 1500);
}

// ---- cards

function card(item, place) {
  const strip = element("div", { class: "strip" });
  for (const map of item.maps.length ? item.maps : [null]) {
    const frame = element("div", { class: "frame" }, element("canvas"), element("canvas", { class: "labels" }));
    if (map?.caption) frame.append(element("span", {}, map.caption));
    if (map?.count === 1) frame.append(element("span", { class: "single", title: "Nothing was told apart, so there is no quality" }, "one segment"));
    if (!map) frame.append(element("span", { class: "reason" }, item.status));
    strip.append(frame);
  }
  const value = quality(item);
  const parts = item.maps.map((map) => map.count).join(" / ");
  const notes = item.status === "ok" ? `${parts} seg · ${value === null ? "–" : value.toFixed(2)}` : item.status;
  const footer = element("footer", {}, element("b", {}, item.key), element("span", {}, notes));
  if (value !== null) {
    const level = element("i");
    level.style.transform = `scaleX(${Math.min(1, Math.max(0, value))})`;
    footer.append(element("div", { class: "meter", title: `${measure}: ${meaning}` }, level));
  }
  const made = element("button", { class: "card", type: "button", title: item.key, "data-number": item.number }, strip, footer);
  made.addEventListener("click", () => openSample(place));
  return made;
}

const cardAt = (place) => $("grid").children[place];

function extend() {
  const from = $("grid").children.length;
  const fresh = visible.slice(from, from + CHUNK).map((item, at) => card(item, from + at));
  $("grid").append(...fresh);
  for (const one of fresh) watcher.observe(one);
}

new IntersectionObserver((seen) => seen[0].isIntersecting && $("grid").children.length < visible.length && extend(), { rootMargin: "1200px" }).observe($("more"));

const waiting = [];
let busy = 0;

const watcher = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      const at = waiting.indexOf(target);
      if (isIntersecting && at < 0 && !target.classList.contains("drawn")) waiting.push(target);
      if (!isIntersecting && at >= 0) waiting.splice(at, 1);
      if (!isIntersecting) wipe(target);
    }
    drawWaiting();
  },
  { rootMargin: "400px" },
);

function drawWaiting() {
  while (busy < DRAWING && waiting.length) {
    busy++;
    drawCard(waiting.shift()).finally(() => { busy--; drawWaiting(); });
  }
}

async function drawCard(target) {
  const { photo, maps } = await loadSample(Number(target.dataset.number));
  if (!target.isConnected) return;
  target.querySelectorAll(".frame").forEach((frame, at) => {
    const [under, over] = frame.querySelectorAll("canvas");
    if (photo) paintPhoto(under, photo);
    if (maps[at]) paintLabels(over, photo, maps[at], look);
  });
  target.classList.add("drawn");
  document.documentElement.dataset.drawn ??= Math.round(performance.now());
}

function wipe(target) {
  if (!target.classList.contains("drawn")) return;
  target.classList.remove("drawn");
  for (const canvas of target.querySelectorAll("canvas")) canvas.width = canvas.height = 0;
}

function redrawCards() {
  for (const one of $("grid").querySelectorAll(".drawn")) waiting.push(one);
  drawWaiting();
}

// ---- controls

let pause = 0;
const soon = (action) => { clearTimeout(pause); pause = setTimeout(action, 120); };

function applyLook() {
  look.tint = Number($("tint").value);
  look.outline = $("outline").checked;
  redrawCards();
  if (dialog.open) repaint();
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function chooseRange(name, low, high) {
  $("filters").reset();
  $(name + "-min").value = low;
  $(name + "-max").value = high;
  turnTo("all");
}

function nudge(by) {
  $("tint").value = Number($("tint").value) + by;
  applyLook();
}

// With levels a sample has one of its maps at a time.
function showLevel(level) {
  if (index.level === null) return;
  const open = dialog.open && visible[shown.place];
  look.level = Math.min(Number($("level").max), Math.max(0, level));
  $("level").value = look.level;
  for (const item of items) item.maps = item.levels.slice(look.level, look.level + 1);
  $("level-name").textContent = items.find((item) => item.maps.length)?.maps[0].caption ?? "";
  refresh();
  if (!open) return;
  if (visible.includes(open)) openSample(visible.indexOf(open));
  else dialog.close();
}

const shortcuts = {
  "/": () => $("search").focus(),
  "?": () => $("help").showModal(),
  l: switchTheme,
  o: () => { $("outline").checked = !$("outline").checked; applyLook(); },
  "+": () => nudge(0.1),
  "-": () => nudge(-0.1),
  "[": () => showLevel(look.level - 1),
  "]": () => showLevel(look.level + 1),
};
const inSample = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ",": () => setSplit(Number($("split").value) - 5),
  ".": () => setSplit(Number($("split").value) + 5),
  z: () => zoomTo(view.scale * ZOOM.step),
  x: () => zoomTo(view.scale / ZOOM.step),
  0: () => zoomTo(1),
};

function walk(key) {
  const cards = [...$("grid").children];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) return false;
  const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  cards[at + by]?.focus();
  return by !== undefined;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type='checkbox']), select")) return;
  const action = (dialog.open ? inSample[event.key] : undefined) ?? shortcuts[event.key.toLowerCase()];
  const page = offered[Number(event.key) - 1];
  if (action) action();
  else if (!dialog.open && page) turnTo(page);
  else if (dialog.open || !walk(event.key)) return;
  event.preventDefault();
});

$("level").addEventListener("input", () => soon(() => showLevel(Number($("level").value))));
$("filters").addEventListener("input", (event) => event.target.id !== "level" && (event.target.id === "tint" || event.target.id === "outline" ? soon(applyLook) : soon(refresh)));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(() => { if (PAGES[state.page]) $("sort").value = PAGES[state.page]; applyLook(); showLevel(index.level); refresh(); }));
$("empty-reset").addEventListener("click", () => $("filters").reset());
$("theme").addEventListener("click", switchTheme);
$("copy-keys").addEventListener("click", copyKeys);
$("help-open").addEventListener("click", () => $("help").showModal());

// ---- opening

$("facts").append(...index.facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
const failed = index.statuses.reduce((sum, [status, count]) => sum + (status === "ok" ? 0 : count), 0);
const counts = { all: items.length, random: sampled.length, failures: failed };
const filled = { random: sampled.length, failures: failed, statistics: index.histograms.length, worst: index.histograms.length, best: index.histograms.length };
const offered = Object.keys(PAGES).filter((page) => filled[page] !== 0);
for (const page of offered) {
  const button = element("button", { type: "button", "data-page": page }, page[0].toUpperCase() + page.slice(1));
  if (page in counts) button.append(element("small", {}, whole.format(counts[page])));
  button.addEventListener("click", () => turnTo(page));
  $("pages").append(button);
}
$("status").append(element("option", { value: "" }, "any"), ...[...new Set(items.map((item) => item.status))].sort().map((status) => element("option", {}, status)));
const named = [...new Set(items.flatMap((item) => item.categories))].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
$("category").append(element("option", { value: "" }, "any"), ...named.map((name) => element("option", {}, name)));
$("categories").hidden = !named.length;
$("levels").hidden = index.level === null;
$("level").max = Math.max(0, ...items.map((item) => item.levels.length - 1));
$("grid").classList.toggle("variants", index.level === null && items.some((item) => item.maps.length > 1));
fillFailures($("failures"), failures);
fillStatistics($("statistics"), chooseRange);
$("loading").hidden = true;
for (const one of document.querySelectorAll("[data-measure]")) {
  one.textContent = one.dataset.measure.replace("quality", measure).replace("Quality", measure[0].toUpperCase() + measure.slice(1));
  one.title = meaning;
}
$("meaning").textContent = `${measure}: ${meaning}`;
setSplit(50);
readAddress();
