// One sample, large: a slider between photo and labels, every segment by name under the pointer.

const dialog = $("sample");
const stage = $("stage");
const tip = $("tip");
const shown = { place: -1, item: null, sample: null, figures: [], lit: undefined, pinned: undefined };
const ZOOM = { most: 16, step: 1.5 };
let view = { ...WHOLE }; // of every figure, so that they are compared at the same place

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
  if (!dialog.open) dialog.showModal();
  writeAddress();
  const sample = await loadSample(item.number);
  if (visible[shown.place] !== item) return;
  if (shown.item !== item) moveTo(1, 0, 0);
  Object.assign(shown, { item, sample, lit: undefined, pinned: undefined });
  tip.hidden = true;
  listFacts(item);
  buildFigures(item, sample);
  listSegments(item, sample);
  dialog.dataset.shows = item.number;
}

const [measure, meaning] = index.measure;
const qualityOf = (map) => map.quality?.toFixed(3) ?? (map.count === 1 ? "none, one segment" : "–");

function listFacts(item) {
  const facts = [["status", item.status], ["error", item.error], ["shard", item.shard], ["index", item.index], ["size", item.size && `${item.size[0]} × ${item.size[1]}`]];
  if (item.maps.length === 1) facts.push(["segments", item.maps[0].count], [measure, qualityOf(item.maps[0])]);
  $("sample-facts").replaceChildren(
    ...facts.filter(([, value]) => value !== null && value !== undefined).flatMap(([name, value]) => [element("dt", name === measure ? { title: meaning } : {}, name), element("dd", {}, String(value))]),
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
  stage.replaceChildren(...shown.figures.map((one) => one.figure));
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
  for (const { figure } of shown.figures) {
    figure.style.width = Math.floor(width * scale) + "px";
    figure.style.height = Math.floor(height * scale) + "px";
  }
  repaint();
}

function repaint() {
  for (const { map, canvases } of shown.figures) {
    if (shown.sample.photo) paintPhoto(canvases[0], shown.sample.photo, view);
    if (map) paintLabels(canvases[1], shown.sample.photo, map, look, view);
  }
  light(shown.lit);
}

// ---- zoom: every figure shows the same part of its picture

// x, y: the point that stays where it is, in shares of a figure.
function zoomTo(scale, x = 0.5, y = 0.5) {
  const next = Math.min(ZOOM.most, Math.max(1, scale));
  moveTo(next, view.left + x / view.scale - x / next, view.top + y / view.scale - y / next);
}

function moveTo(scale, left, top) {
  const inside = (value) => Math.min(1 - 1 / scale, Math.max(0, value));
  view = { scale, left: inside(left), top: inside(top) };
  dialog.classList.toggle("zoomed", scale > 1);
  $("zoom").textContent = `${Math.round(scale * 100)} %`;
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => dialog.open && repaint());
}
let frame = 0;

const shareOf = (figure, event) => {
  const box = figure.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};

// One pointer moves the picture, two stretch it. Returns whether the last press was a drag, which is no click.
function followFingers(figure, handle) {
  const fingers = new Map();
  let dragged = false;
  figure.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(view.scale * Math.exp(-event.deltaY / 500), ...shareOf(figure, event));
  }, { passive: false });
  figure.addEventListener("dblclick", () => zoomTo(1));
  figure.addEventListener("pointerdown", (event) => {
    if (event.target === handle) return;
    dragged = false;
    fingers.set(event.pointerId, shareOf(figure, event));
  });
  figure.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = shareOf(figure, event);
    const moved = Math.hypot((now[0] - before[0]) * figure.clientWidth, (now[1] - before[1]) * figure.clientHeight);
    if (!dragged && moved < 4) return;
    if (!dragged) figure.setPointerCapture(event.pointerId);
    dragged = true;
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) zoomTo((view.scale * Math.hypot(now[0] - other[0], now[1] - other[1])) / Math.max(0.01, Math.hypot(before[0] - other[0], before[1] - other[1])), ...other);
    else moveTo(view.scale, view.left - (now[0] - before[0]) / view.scale, view.top - (now[1] - before[1]) / view.scale);
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) figure.addEventListener(end, (event) => fingers.delete(event.pointerId));
  return () => dragged;
}

function segmentAt(figure, map, event) {
  const [across, down] = shareOf(figure, event);
  if (across < 0 || down < 0 || across >= 1 || down >= 1) return undefined;
  const x = Math.floor((view.left + across / view.scale) * map.width);
  const y = Math.floor((view.top + down / view.scale) * map.height);
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
  const wasDragged = followFingers(figure, handle);
  handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
  handle.addEventListener("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && slide(event));
  figure.addEventListener("pointermove", (event) => {
    const id = event.target === handle ? undefined : segmentAt(figure, map, event);
    if (shown.pinned === undefined) light(id === undefined ? undefined : { map, id });
    showTip(event, map, id);
  });
  figure.addEventListener("pointerleave", () => { tip.hidden = true; light(shown.pinned); });
  figure.addEventListener("click", (event) => {
    if (event.target === handle || wasDragged()) return;
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
  for (const one of shown.figures) if (one.map) paintGlow(one.canvases[2], one.map, one.map === target?.map ? target.id : undefined, view);
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
      swatch.style.background = `rgb(${color(map, segment.id)})`;
      const row = element("tr", { "data-id": segment.id, "data-map": at, tabindex: 0 },
        element("td", {}, swatch, segment.category ? `${segment.id} ${segment.category}` : String(segment.id)),
        element("td", { class: "number" }, share(segment.area / map.area)), element("td", { class: "number" }, segment.score.toFixed(2)));
      row.addEventListener("pointerenter", () => shown.pinned === undefined && light({ map, id: segment.id }));
      row.addEventListener("pointerleave", () => light(shown.pinned));
      row.addEventListener("click", () => pin({ map, id: segment.id }));
      table.append(row);
    }
    const caption = item.maps[at].caption;
    return caption ? element("div", {}, element("h3", {}, `${caption} · ${item.maps[at].count} segments · ${measure} ${qualityOf(item.maps[at])}`), table) : table;
  });
  $("segments").replaceChildren(...tables);
}

const step = (by) => visible[shown.place + by] && openSample(shown.place + by);

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => dialog.close());
$("zoom-in").addEventListener("click", () => zoomTo(view.scale * ZOOM.step));
$("zoom-out").addEventListener("click", () => zoomTo(view.scale / ZOOM.step));
$("zoom").addEventListener("click", () => zoomTo(1));
$("split").addEventListener("input", (event) => setSplit(Number(event.target.value)));
dialog.addEventListener("close", () => {
  writeAddress();
  cardAt(shown.place)?.focus();
});
addEventListener("resize", () => dialog.open && layOut());
