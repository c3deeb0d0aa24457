// From the page's data blocks to pixels: unpack label maps, tint, outline.

const palette = index.palette;

const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function inflate(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Each row was stored as its difference from the row above; typed arrays wrap around as the packer did.
async function unpackMap(map) {
  const buffer = await inflate(fromBase64(map.data));
  const labels = map.bits === 8 ? new Uint8Array(buffer) : new Uint16Array(buffer);
  for (let at = map.width; at < labels.length; at++) labels[at] += labels[at - map.width];
  return { ...map, labels, ignore: map.bits === 8 ? 255 : 65535, paths: new Map() };
}

async function loadSample(number) {
  const raw = JSON.parse(document.getElementById("item-" + number).textContent);
  const photo = raw.image ? await createImageBitmap(new Blob([fromBase64(raw.image)])) : null;
  const level = look.level;
  const chosen = level === null ? raw.maps : [index.level, level].flatMap((at) => raw.maps.slice(at, at + 1));
  const maps = await Promise.all(chosen.map(unpackMap));
  for (const map of maps) map.slots = map === maps[0] ? new Map() : slotsLike(maps[0], map);
  return { photo, maps: level === null ? maps : maps.slice(-1) };
}

// Places in the palette, so that a region keeps its colour from map to map: the segments that share most pixels with one
// of `first` take its place, largest share first, each place once; the others take places that `first` has not.
function slotsLike(first, map) {
  const slots = new Map();
  if (first.labels.length !== map.labels.length) return slots;
  const shared = new Map();
  for (let at = 0; at < map.labels.length; at++) {
    if (map.labels[at] === map.ignore || first.labels[at] === first.ignore) continue;
    const pair = map.labels[at] * 65536 + first.labels[at];
    shared.set(pair, (shared.get(pair) ?? 0) + 1);
  }
  const taken = new Set();
  for (const [pair] of [...shared].sort((one, other) => other[1] - one[1])) {
    const [id, place] = [Math.floor(pair / 65536), pair % 65536];
    if (slots.has(id) || taken.has(place)) continue;
    slots.set(id, place);
    taken.add(place);
  }
  let free = 1 + first.segments.reduce((most, segment) => Math.max(most, segment.id), -1);
  for (const { id } of map.segments) if (!slots.has(id)) slots.set(id, free++);
  return slots;
}

const color = (map, id) => palette[(map.slots.get(id) ?? id) % palette.length];

// The map in colours, one pixel a label; segment `only` alone where it is given.
function tintOf(map, only) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const image = new ImageData(map.width, map.height);
  for (let at = 0; at < map.labels.length; at++) {
    const id = map.labels[at];
    if (id === map.ignore || (only !== undefined && id !== only)) continue;
    const [red, green, blue] = color(map, id);
    image.data.set([red, green, blue, 255], at * 4);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A shade over everything but the segments of a category.
function shadeOf(map, category) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, map.width, map.height);
  context.globalCompositeOperation = "destination-out";
  for (const one of map.segments) if (one.category === category) context.drawImage(tintOf(map, one.id), 0, 0);
  return canvas;
}

// Borders between pixels as lines, runs joined: sharp at every size of the screen.
function bordersOf(map, only) {
  if (map.paths.has(only)) return map.paths.get(only);
  const { labels, width, height } = map;
  const differs = only === undefined ? (a, b) => labels[a] !== labels[b] : (a, b) => (labels[a] === only) !== (labels[b] === only);
  const path = new Path2D();
  const trace = (count, length, at, next, line) => {
    for (let row = 0; row < count; row++) {
      let start = -1;
      for (let step = 0; step <= length; step++) {
        const edge = step < length && differs(at(row, step), at(row, step) + next);
        if (edge && start < 0) start = step;
        if (!edge && start >= 0) { line(row + 1, start, step); start = -1; }
      }
    }
  };
  trace(height - 1, width, (y, x) => y * width + x, width, (y, from, to) => { path.moveTo(from, y); path.lineTo(to, y); });
  trace(width - 1, height, (x, y) => y * width + x, 1, (x, from, to) => { path.moveTo(x, from); path.lineTo(x, to); });
  map.paths.set(only, path);
  return path;
}

const WHOLE = { scale: 1, left: 0, top: 0 }; // a view of all of a picture; left and top: shares of it outside the view

// A canvas in device pixels whose context speaks picture pixels; the whole picture fits into it at scale 1.
function openCanvas(canvas, width, height, view = WHOLE) {
  const box = canvas.parentElement.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const fitting = Math.min(canvas.width / width, canvas.height / height);
  const scale = fitting * view.scale;
  const [left, top] = [(canvas.width - width * fitting) / 2, (canvas.height - height * fitting) / 2];
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, left - view.left * width * scale, top - view.top * height * scale);
  return { context, line: ratio / scale };
}

function paintPhoto(canvas, photo, view) {
  const { context } = openCanvas(canvas, photo.width, photo.height, view);
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, 0, 0);
}

function paintLabels(canvas, photo, map, look, view) {
  const { context, line } = openCanvas(canvas, map.width, map.height, view);
  if (photo) context.drawImage(photo, 0, 0, map.width, map.height);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = look.tint;
  context.drawImage(look.category ? shadeOf(map, look.category) : (map.tint ??= tintOf(map)), 0, 0);
  context.globalAlpha = 1;
  if (look.outline) strokeTwice(context, bordersOf(map), view ? line : 0.65 * line); // thinner on thumbnails
}

function paintGlow(canvas, map, id, view) {
  const { context, line } = openCanvas(canvas, map.width, map.height, view);
  if (id === undefined) return;
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#0008";
  context.fillRect(0, 0, map.width, map.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(tintOf(map, id), 0, 0);
  context.globalCompositeOperation = "source-over";
  strokeTwice(context, bordersOf(map, id), 1.6 * line);
}

// White on a dark rim shows on any photo.
function strokeTwice(context, path, line) {
  context.lineCap = "square";
  for (const [style, width] of [["#0009", 2.4], ["#fff", 1.1]]) {
    context.strokeStyle = style;
    context.lineWidth = width * line;
    context.stroke(path);
  }
}
