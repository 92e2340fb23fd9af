// Drawing, moving and typing of boxes. `element`, `props`, `trigger` and `watch` come from gr.HTML.
// Boxes are [x0, y0, x1, y1] in pixels of the picture.
const COLOURS = ["#ffb000", "#3fb6ff", "#ff6fae", "#3ddc97", "#b99bff", "#ff8552"];
const MAX_BOXES = 12;
const SIDES = { w: 0, n: 1, e: 2, s: 3 };
const find = (name) => element.querySelector(name);
const image = find(".rc-image"), frame = find(".rc-frame"), layer = find(".rc-layer"), chips = find(".rc-chips");
const fields = find(".rc-fields"), legend = find(".rc-legend"), inputs = [...element.querySelectorAll("input")];
const state = { width: 1, height: 1, boxes: [], labels: [], selected: null, revision: 0, drag: null, timer: null };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const colour = (index) => COLOURS[index % COLOURS.length];
const leastSide = () => Math.max(Math.max(state.width, state.height) / 100, 0.01);
const rounded = (value) => (Math.max(state.width, state.height) < 50 ? Math.round(value * 100) / 100 : Math.round(value));

function take(value) { // what the server sends
  if (!value || (value.picture === undefined && !value.from_server)) return;
  if (value.picture !== undefined) {
    Object.assign(state, { width: value.width, height: value.height, drag: null });
    image.src = value.picture;
    image.alt = value.alt || "The picture";
    frame.style.setProperty("--ratio", value.width / value.height);
    frame.style.aspectRatio = `${value.width} / ${value.height}`;
  }
  state.boxes = value.boxes.map((box) => [...box]);
  state.labels = [...value.labels];
  state.selected = state.boxes.length ? value.selected : null;
  state.revision += 1;
  draw();
  share();
}

function share() { // what the server reads with the next event, whichever that is: never the picture it sent
  props.value = { boxes: state.boxes.map((box) => box.map(rounded)), selected: state.selected, revision: state.revision };
}

function takeAnswer(answer) { // to boxes that the page sent; one to older boxes is let go, another is on its way
  if (!answer || answer.revision !== state.revision) return;
  state.labels = answer.labels;
  draw();
}

function send(delay = 0) { // the boxes to the server
  state.revision += 1;
  clearTimeout(state.timer);
  state.timer = setTimeout(() => {
    share();
    trigger("input");
  }, delay);
}

function boxElement(index) {
  const box = document.createElement("div");
  box.className = "rc-box";
  box.tabIndex = 0;
  box.setAttribute("role", "button");
  box.dataset.index = index;
  const tag = document.createElement("span");
  tag.className = "rc-tag";
  box.append(tag);
  for (const corner of ["nw", "ne", "sw", "se"]) {
    const handle = document.createElement("i");
    handle.className = `rc-handle rc-${corner}`;
    handle.dataset.corner = corner;
    box.append(handle);
  }
  return box;
}

function draw() {
  while (layer.children.length > state.boxes.length) layer.lastChild.remove();
  while (layer.children.length < state.boxes.length) layer.append(boxElement(layer.children.length));
  state.boxes.forEach((box, index) => {
    const [x0, y0, x1, y1] = box, part = layer.children[index], label = state.labels[index] || "";
    part.style.cssText = `left:${(100 * x0) / state.width}%;top:${(100 * y0) / state.height}%;` +
      `width:${(100 * (x1 - x0)) / state.width}%;height:${(100 * (y1 - y0)) / state.height}%;--c:${colour(index)}`;
    part.classList.toggle("is-selected", index === state.selected);
    part.setAttribute("aria-pressed", String(index === state.selected));
    part.setAttribute("aria-label", `Box ${index + 1}${label && ", " + label}, ${box.map(rounded).join(", ")}`);
    part.firstChild.textContent = label ? `${index + 1} ${label}` : `${index + 1}`;
  });
  placeTags();
  chips.replaceChildren(...state.boxes.map((_, index) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "rc-chip";
    chip.style.setProperty("--c", colour(index));
    chip.textContent = index + 1;
    chip.setAttribute("aria-label", `Choose box ${index + 1}`);
    chip.setAttribute("aria-pressed", String(index === state.selected));
    chip.addEventListener("click", () => select(index, true));
    return chip;
  }));
  const chosen = state.boxes[state.selected];
  fields.disabled = !chosen;
  legend.textContent = chosen ? `Box ${state.selected + 1}, pixels` : "No box chosen";
  inputs.forEach((input, side) => {
    input.max = side % 2 ? state.height : state.width;
    if (document.activeElement !== input || !chosen) input.value = chosen ? rounded(chosen[side]) : "";
  });
  find(".rc-delete").disabled = !chosen;
  find(".rc-clear").disabled = !state.boxes.length;
  find(".rc-add").disabled = state.boxes.length >= MAX_BOXES;
}

function placeTags() { // inside the stage, above the box or, where that is cut off or covers another tag, below it
  const stage = find(".rc-stage").getBoundingClientRect(), placed = [];
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  for (const part of layer.children) {
    const tag = part.firstChild, box = part.getBoundingClientRect();
    tag.style.left = `${Math.max(Math.min(-3, stage.right - box.left - tag.offsetWidth - 4), stage.left - box.left)}px`;
    const isBad = () => {
      const at = tag.getBoundingClientRect();
      return at.top < stage.top || at.bottom > stage.bottom || placed.some((other) => overlaps(at, other));
    };
    part.classList.remove("is-low");
    if (isBad()) part.classList.add("is-low");
    if (isBad() && box.top - stage.top > tag.offsetHeight) part.classList.remove("is-low");
    placed.push(tag.getBoundingClientRect());
  }
}

function select(index, tell = false) {
  if (index === state.selected) return;
  state.selected = index;
  draw();
  if (tell) send();
}

function change(index, box, delay) {
  const least = leastSide();
  let [x0, y0, x1, y1] = [Math.min(box[0], box[2]), Math.min(box[1], box[3]), Math.max(box[0], box[2]), Math.max(box[1], box[3])];
  x0 = clamp(x0, 0, state.width - least);
  y0 = clamp(y0, 0, state.height - least);
  state.boxes[index] = [x0, y0, clamp(x1, x0 + least, state.width), clamp(y1, y0 + least, state.height)];
  state.labels[index] = "";
  draw();
  if (delay !== undefined) send(delay);
}

function moved(box, dx, dy) {
  dx = clamp(dx, -box[0], state.width - box[2]);
  dy = clamp(dy, -box[1], state.height - box[3]);
  return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
}

function place(event) { // of a pointer, in pixels of the picture
  const at = layer.getBoundingClientRect();
  const x = ((event.clientX - at.left) / at.width) * state.width, y = ((event.clientY - at.top) / at.height) * state.height;
  return [clamp(x, 0, state.width), clamp(y, 0, state.height)];
}

layer.addEventListener("pointerdown", (event) => {
  if (event.button || !image.src || state.drag) return;
  const part = event.target.closest(".rc-box"), index = part ? Number(part.dataset.index) : null;
  const corner = event.target.dataset.corner, isChosen = index !== null && index === state.selected;
  const drag = { start: place(event), pointer: event.pointerId, touched: index, isMoved: false };
  if (corner && isChosen) Object.assign(drag, { kind: "resize", corner, index, box: [...state.boxes[index]] });
  else if (isChosen && !event.shiftKey) Object.assign(drag, { kind: "move", index, box: [...state.boxes[index]] });
  else drag.kind = "draw";
  state.drag = drag;
  layer.setPointerCapture(event.pointerId);
  event.preventDefault();
});

layer.addEventListener("pointermove", (event) => {
  const drag = state.drag;
  if (!drag || event.pointerId !== drag.pointer) return;
  const [x, y] = place(event), dx = x - drag.start[0], dy = y - drag.start[1];
  const scale = layer.getBoundingClientRect().width / state.width;
  if (!drag.isMoved && Math.hypot(dx, dy) * scale < 4) return; // a click, so far
  if (drag.kind === "draw" && drag.index === undefined) {
    if (state.boxes.length >= MAX_BOXES) return;
    drag.index = state.boxes.push([...drag.start, ...drag.start]) - 1;
    state.selected = drag.index;
  }
  drag.isMoved = true;
  if (drag.kind === "draw") change(drag.index, [...drag.start, x, y]);
  if (drag.kind === "move") change(drag.index, moved(drag.box, dx, dy));
  if (drag.kind === "resize") {
    const box = [...drag.box];
    for (const letter of drag.corner) box[SIDES[letter]] += SIDES[letter] % 2 ? dy : dx;
    change(drag.index, box);
  }
});

function release(event) {
  const drag = state.drag;
  if (!drag || event.pointerId !== drag.pointer) return;
  state.drag = null;
  if (drag.isMoved) send();
  else if (drag.touched !== null) select(drag.touched, true);
  if (state.selected !== null && layer.children[state.selected]) layer.children[state.selected].focus({ preventScroll: true });
}
layer.addEventListener("pointerup", release);
layer.addEventListener("pointercancel", release);

layer.addEventListener("keydown", (event) => {
  const part = event.target.closest(".rc-box");
  if (!part) return;
  const index = Number(part.dataset.index), box = state.boxes[index];
  const step = Math.max(state.width, state.height) / (event.ctrlKey ? 20 : 100);
  const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (way) {
    select(index);
    change(index, event.shiftKey ? [box[0], box[1], Math.max(box[2] + way[0], box[0]), Math.max(box[3] + way[1], box[1])] : moved(box, ...way), 250);
  } else if (event.key === "Enter" || event.key === " ") select(index, true);
  else if (event.key === "Delete" || event.key === "Backspace") { state.selected = index; remove(); }
  else return;
  event.preventDefault();
});

function remove() {
  const index = state.selected;
  if (index === null) return;
  state.boxes.splice(index, 1);
  state.labels.splice(index, 1);
  state.selected = state.boxes.length ? Math.min(index, state.boxes.length - 1) : null;
  draw();
  if (state.selected !== null) layer.children[state.selected].focus({ preventScroll: true });
  send();
}

find(".rc-delete").addEventListener("click", remove);
find(".rc-clear").addEventListener("click", () => {
  Object.assign(state, { boxes: [], labels: [], selected: null });
  draw();
  send();
});
find(".rc-add").addEventListener("click", () => { // for those who do not draw: a box in the middle, then the fields
  if (!image.src || state.boxes.length >= MAX_BOXES) return;
  const { width, height } = state;
  state.selected = state.boxes.push([0.375 * width, 0.375 * height, 0.625 * width, 0.625 * height]) - 1;
  draw();
  inputs[0].focus({ preventScroll: true });
  send();
});
inputs.forEach((input, side) => input.addEventListener("change", () => {
  const box = state.boxes[state.selected], value = Number.parseFloat(input.value);
  if (!box || !Number.isFinite(value)) { input.blur(); draw(); return; }
  const next = [...box], opposite = (side + 2) % 4;
  next[side] = value;
  if ((side < 2) !== next[side] < next[opposite]) next[side] = box[side]; // a side never passes the opposite one
  change(state.selected, next, 50);
  input.value = rounded(state.boxes[state.selected][side]);
}));

new ResizeObserver(placeTags).observe(layer);
watch("value", () => take(props.value));
watch("answer", () => takeAnswer(props.answer));
take(props.value);
