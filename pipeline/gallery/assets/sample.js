// One sample, large: a slider between photo and labels, every segment by name under the pointer.

const dialog = $("sample");
const stage = $("stage");
const tip = $("tip");
const shown = { place: -1, sample: null, figures: [], lit: undefined, pinned: undefined };

function setSplit(percent) {
  const value = Math.min(100, Math.max(0, percent));
  $("split").value = value;
  stage.style.setProperty("--split", value + "%");
}

async function openSample(place) {
  shown.place = place;
  const item = visible[place];
  $("sample-key").textContent = item.key;
  $("sample-place").textContent = `${whole.format(place + 1)} of ${whole.format(visible.length)}`;
  location.replace("#/sample/" + item.number);
  if (!dialog.open) dialog.showModal();
  const sample = await loadSample(item.number);
  if (visible[shown.place] !== item) return;
  Object.assign(shown, { sample, lit: undefined, pinned: undefined });
  tip.hidden = true;
  listFacts(item);
  buildFigures(item, sample);
  listSegments(item, sample);
  dialog.dataset.shows = item.number;
}

const qualityOf = (map) => map.quality?.toFixed(3) ?? (map.count === 1 ? "none, one segment" : "–");

function listFacts(item) {
  const facts = [["status", item.status], ["error", item.error], ["shard", item.shard], ["index", item.index], ["size", item.size && `${item.size[0]} × ${item.size[1]}`]];
  if (item.maps.length === 1) facts.push(["segments", item.maps[0].count], ["quality", qualityOf(item.maps[0])]);
  $("sample-facts").replaceChildren(
    ...facts.filter(([, value]) => value !== null && value !== undefined).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]),
  );
}

function buildFigures(item, sample) {
  const views = sample.maps.length ? sample.maps : sample.photo ? [null] : [];
  shown.figures = views.map((map, at) => {
    const figure = element("figure");
    const canvases = ["photo", "labels", "glow"].map((name) => element("canvas", { class: name }));
    figure.append(...canvases);
    const caption = item.maps[at]?.caption;
    if (caption) figure.append(element("figcaption", {}, caption));
    if (map) {
      figure.append(element("div", { class: "handle" }));
      followPointer(figure, map);
    }
    return { figure, map, canvases };
  });
  stage.replaceChildren(...shown.figures.map((view) => view.figure));
  if (!views.length) stage.append(element("p", { class: "panel" }, item.error || item.status));
  layOut();
}

// As many columns as make the pictures largest.
function layOut() {
  if (!shown.figures.length) return;
  const { photo, maps } = shown.sample;
  const [width, height] = photo ? [photo.width, photo.height] : [maps[0].width, maps[0].height];
  const style = getComputedStyle(stage);
  const room = [stage.clientWidth - 2 * parseFloat(style.paddingLeft), stage.clientHeight - 2 * parseFloat(style.paddingTop)];
  const count = shown.figures.length;
  let scale = 0;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    scale = Math.max(scale, Math.min((room[0] - 12 * (columns - 1)) / columns / width, (room[1] - 12 * (rows - 1)) / rows / height));
  }
  for (const view of shown.figures) {
    view.figure.style.width = Math.floor(width * scale) + "px";
    view.figure.style.height = Math.floor(height * scale) + "px";
  }
  repaint();
}

function repaint() {
  for (const { map, canvases } of shown.figures) {
    if (shown.sample.photo) paintPhoto(canvases[0], shown.sample.photo, "contain");
    if (map) paintLabels(canvases[1], shown.sample.photo, map, "contain", look);
  }
  light(shown.lit);
}

function segmentAt(figure, map, event) {
  const box = figure.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * map.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * map.height);
  if (x < 0 || y < 0 || x >= map.width || y >= map.height) return undefined;
  const id = map.labels[y * map.width + x];
  return id === map.ignore ? undefined : id;
}

function followPointer(figure, map) {
  const slide = (event) => {
    const box = figure.getBoundingClientRect();
    setSplit(((event.clientX - box.left) / box.width) * 100);
  };
  const handle = figure.querySelector(".handle");
  handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
  handle.addEventListener("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && slide(event));
  figure.addEventListener("pointermove", (event) => {
    const id = event.target === handle ? undefined : segmentAt(figure, map, event);
    if (shown.pinned === undefined) light(id === undefined ? undefined : { map, id });
    showTip(event, map, id);
  });
  figure.addEventListener("pointerleave", () => { tip.hidden = true; light(shown.pinned); });
  figure.addEventListener("click", (event) => {
    if (event.target === handle) return;
    const id = segmentAt(figure, map, event);
    pin(id === undefined ? undefined : { map, id });
  });
}

const same = (one, other) => one?.map === other?.map && one?.id === other?.id;

function pin(target) {
  shown.pinned = target && !same(target, shown.pinned) ? target : undefined;
  light(shown.pinned);
}

function light(target) {
  if (same(target, shown.lit) && target === undefined && dialog.dataset.glow === undefined) return;
  shown.lit = target;
  for (const view of shown.figures) if (view.map) paintGlow(view.canvases[2], view.map, view.map === target?.map ? target.id : undefined, "contain");
  if (target) dialog.dataset.glow = target.id;
  else delete dialog.dataset.glow;
  for (const row of $("segments").querySelectorAll("tr[data-id]")) {
    const lit = target && row.dataset.id === String(target.id) && Number(row.dataset.map) === shown.sample.maps.indexOf(target.map);
    row.classList.toggle("lit", Boolean(lit));
  }
}

const describe = (segment, area) => [`segment ${segment.id}`, share(segment.area / area), `score ${segment.score.toFixed(2)}`, segment.category].filter(Boolean).join(" · ");

function showTip(event, map, id) {
  const segment = map.segments.find((one) => one.id === id);
  tip.hidden = !segment;
  if (!segment) return;
  tip.textContent = describe(segment, map.area);
  tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 8) + "px";
}

function listSegments(item, sample) {
  const tables = sample.maps.map((map, at) => {
    const table = element("table", {}, element("tr", {}, element("th", {}, "segment"), element("th", { class: "number" }, "area"), element("th", { class: "number" }, "score")));
    for (const segment of map.segments.toSorted((one, other) => other.area - one.area)) {
      const swatch = element("i", { class: "swatch" });
      swatch.style.background = `rgb(${color(segment.id)})`;
      const row = element("tr", { "data-id": segment.id, "data-map": at, tabindex: 0 },
        element("td", {}, swatch, segment.category ? `${segment.id} ${segment.category}` : String(segment.id)),
        element("td", { class: "number" }, share(segment.area / map.area)), element("td", { class: "number" }, segment.score.toFixed(2)));
      row.addEventListener("pointerenter", () => shown.pinned === undefined && light({ map, id: segment.id }));
      row.addEventListener("pointerleave", () => light(shown.pinned));
      row.addEventListener("click", () => pin({ map, id: segment.id }));
      table.append(row);
    }
    const caption = item.maps[at].caption;
    return caption ? element("div", {}, element("h3", {}, `${caption} · ${item.maps[at].count} segments · quality ${qualityOf(item.maps[at])}`), table) : table;
  });
  $("segments").replaceChildren(...tables);
}

const step = (by) => visible[shown.place + by] && openSample(shown.place + by);

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => dialog.close());
$("split").addEventListener("input", (event) => setSplit(Number(event.target.value)));
dialog.addEventListener("close", () => {
  location.replace("#/" + state.page);
  cardAt(shown.place)?.focus();
});
addEventListener("resize", () => dialog.open && layOut());
