// The pointer's distance and that between two clicked points. `element`, `props` and `watch` are Gradio's.
let view = null; // { ...value, depth: Float32Array }
let points = [];
let last = 0; // number of the newest picture

const find = (selector) => element.querySelector(selector);
const metres = (value) => (value > 0 && Number.isFinite(value) ? `${value.toFixed(2)} m` : "no depth");

async function load() {
  const value = props.value;
  const ticket = ++last;
  points = [];
  view = null;
  find(".view").hidden = true;
  find(".empty").hidden = !!value;
  find(".empty").textContent = "The depth map comes here.";
  if (!value) return;
  const answer = await fetch(value.depth.url);
  const bytes = answer.ok ? await answer.arrayBuffer() : null;
  if (ticket !== last) return; // another picture has come meanwhile
  find(".view").hidden = !bytes;
  find(".empty").hidden = !!bytes;
  find(".empty").textContent = "This depth map is kept no longer. Measure the picture again.";
  if (!bytes) return;
  view = { ...value, depth: new Float32Array(bytes) };
  find(".scale").src = value.scale.url;
  find(".scale").style.flex = `${value.scale_width} 1 0`; // both shrink alike, so that their heights stay equal
  find(".frame").style.flex = `${value.columns.length} 1 0`;
  find(".pointer").textContent = "Point at the picture.";
  show("colors");
  mark();
}

function show(which) {
  find(".picture").src = view[which].url;
  for (const button of element.querySelectorAll(".show"))
    button.setAttribute("aria-pressed", String(button.dataset.show === which));
}

// The sampled pixel under the pointer: its column and row in the picture as given, its depth, its place in space.
function under(event) {
  const box = find(".picture").getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width;
  const down = (event.clientY - box.top) / box.height;
  if (!view || !(across >= 0 && across < 1 && down >= 0 && down < 1)) return null;
  const i = Math.floor(across * view.columns.length);
  const j = Math.floor(down * view.rows.length);
  const [column, row, z] = [view.columns[i], view.rows[j], view.depth[j * view.columns.length + i]];
  const [fx, fy, cx, cy] = view.camera;
  const place = [((column + 0.5 - cx) / fx) * z, ((row + 0.5 - cy) / fy) * z, z];
  return { column, row, z, place };
}

// Numbers only, so that markup cannot come in.
function mark() {
  const shape = (point) => [((point.column + 0.5) / view.width) * 100, ((point.row + 0.5) / view.height) * 100];
  const ends = points.map(shape);
  const line = ([[x1, y1], [x2, y2]], color, width) =>
    `<line x1="${x1}%" y1="${y1}%" x2="${x2}%" y2="${y2}%" stroke="${color}" stroke-width="${width}" />`;
  const dot = ([x, y]) => `<circle cx="${x}%" cy="${y}%" r="5" fill="white" stroke="black" stroke-width="2" />`;
  const drawn = ends.length === 2 ? line(ends, "black", 4) + line(ends, "white", 2) : "";
  find(".marks").innerHTML = drawn + ends.map(dot).join("");
  const between = find(".between");
  if (points.length === 2) {
    const [a, b] = points;
    const distance = Math.hypot(...a.place.map((value, axis) => value - b.place[axis]));
    between.innerHTML = `Between the points: <b>${metres(distance)}</b> (at ${metres(a.z)} and ${metres(b.z)})`;
  } else if (points.length === 1) {
    between.textContent = `First point at ${metres(points[0].z)}. Click the second one.`;
  } else {
    between.textContent = "Click two points to measure between them.";
  }
}

element.addEventListener("pointermove", (event) => {
  if (!view || !event.target.closest(".frame")) return;
  const point = under(event);
  if (point) find(".pointer").innerHTML = `<b>${metres(point.z)}</b> at pixel (${point.column}, ${point.row})`;
});

element.addEventListener("click", (event) => {
  const button = event.target.closest(".show");
  if (button && view) return show(button.dataset.show);
  if (!view || !event.target.closest(".frame")) return;
  const point = under(event);
  if (!point || !(point.z > 0)) return;
  points = points.length === 2 ? [point] : [...points, point];
  mark();
});

watch("value", load);
load();
