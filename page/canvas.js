// A canvas whose pixels are those of the network. Layers: photo below, colour strokes, and the hidden part, which is
// shown as stripes. Discs are filled pixel by pixel, so that what is painted is what arrives.
const [H, W] = [props.rows, props.columns];
const root = element.querySelector('.ddn-canvas');
const layer = () => Object.assign(document.createElement('canvas'), { width: W, height: H });
const photo = layer(), strokes = layer(), hidden = layer();
const view = document.createElement('canvas');
const scale = Math.max(1, Math.round((props.side * 2) / W));
Object.assign(view, { width: W * scale, height: H * scale, tabIndex: 0 });
view.setAttribute('role', 'application');
view.setAttribute('aria-label', 'Canvas: arrow keys move the brush, space paints');
let has = { photo: false, strokes: false, hidden: false };
let tool = props.colours ? 'strokes' : 'hidden';
let spot = { x: Math.floor(W / 2), y: Math.floor(H / 2) };
let last = null, focused = false, past = [];

const bar = document.createElement('div');
bar.className = 'ddn-tools';
const control = (tag, label, attributes) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.title = label;
  made.setAttribute('aria-label', label);
  bar.append(made);
  return made;
};
const named = (text, label, attributes) => {  // an input after its name
  const box = document.createElement('label');
  box.append(text, control('input', label, attributes));
  bar.append(box);
  return box.lastChild;
};
const toolButton = (name, text, label) => {
  const made = control('button', label, { type: 'button', textContent: text });
  made.addEventListener('click', () => { tool = name; mark(); draw(); });
  made.dataset.tool = name;
};
if (props.colours) {
  toolButton('strokes', 'Paint', 'Paint colours');
  toolButton('hidden', 'Hide', 'Hide a part, which is then invented');
}
if (!props.colours) toolButton('hidden', 'Paint', 'Paint over the part to draw anew');
toolButton('erase', 'Erase', 'Take away what was painted');
const colour = props.grey
  ? named('Light', 'Brightness of the brush', { type: 'range', min: 0, max: 255, value: 255 })
  : named('Colour', 'Colour of the brush', { type: 'color', value: '#d04030' });
colour.parentNode.hidden = !props.colours;
const size = named('Brush', 'Size of the brush', { type: 'range', min: 1, max: Math.max(2, Math.round(W / 3)),
  value: Math.max(2, Math.round(W / 12)) });
const undo = control('button', 'Undo the last stroke', { type: 'button', textContent: 'Undo' });
const clear = control('button', props.colours ? 'Empty the canvas' : 'Take away what was painted',
  { type: 'button', textContent: 'Clear' });
root.append(view, bar);

function mark() {
  for (const made of bar.querySelectorAll('[data-tool]')) {
    made.setAttribute('aria-pressed', made.dataset.tool === tool);
  }
}

function draw() {
  const context = view.getContext('2d');
  context.imageSmoothingEnabled = false;
  context.fillStyle = '#808080';
  context.fillRect(0, 0, view.width, view.height);
  if (!has.photo) {  // an empty canvas is a quiet chequerboard
    context.fillStyle = '#8a8a8a';
    const step = view.width / 16;
    for (let y = 0; y * step < view.height; y++) {
      for (let x = y % 2; x < 16; x += 2) context.fillRect(x * step, y * step, step, step);
    }
  }
  if (has.photo) context.drawImage(photo, 0, 0, view.width, view.height);
  context.drawImage(strokes, 0, 0, view.width, view.height);
  if (has.hidden) {
    const stripes = Object.assign(document.createElement('canvas'), { width: view.width, height: view.height });
    const on = stripes.getContext('2d');
    on.imageSmoothingEnabled = false;
    on.drawImage(hidden, 0, 0, view.width, view.height);
    on.globalCompositeOperation = 'source-in';
    on.fillStyle = '#e7e5ef';
    on.fillRect(0, 0, view.width, view.height);
    on.globalCompositeOperation = 'source-atop';
    on.strokeStyle = '#8b7fd0';
    on.lineWidth = 5;
    for (let i = -view.height; i < view.width; i += 18) {
      on.beginPath();
      on.moveTo(i, view.height);
      on.lineTo(i + view.height, 0);
      on.stroke();
    }
    context.globalAlpha = 0.86;
    context.drawImage(stripes, 0, 0);
    context.globalAlpha = 1;
  }
  if (focused) {
    context.strokeStyle = '#fff';
    context.lineWidth = 2;
    context.beginPath();
    context.arc((spot.x + 0.5) * scale, (spot.y + 0.5) * scale, (size.value / 2) * scale, 0, 7);
    context.stroke();
    context.strokeStyle = '#000';
    context.setLineDash([5, 5]);
    context.stroke();
    context.setLineDash([]);
  }
}

function rgb() {
  if (props.grey) return [Number(colour.value), Number(colour.value), Number(colour.value)];
  return [1, 3, 5].map((i) => parseInt(colour.value.slice(i, i + 2), 16));
}

function disc(target, x, y, value) {  // every pixel whose centre is within the brush
  const r = size.value / 2, context = target.getContext('2d');
  for (let j = Math.max(0, Math.floor(y - r)); j <= Math.min(H - 1, Math.ceil(y + r)); j++) {
    for (let i = Math.max(0, Math.floor(x - r)); i <= Math.min(W - 1, Math.ceil(x + r)); i++) {
      if ((i - x) ** 2 + (j - y) ** 2 > r * r) continue;
      context.clearRect(i, j, 1, 1);
      if (value) {
        context.fillStyle = `rgb(${value.join(',')})`;
        context.fillRect(i, j, 1, 1);
      }
    }
  }
}

function dab(x, y) {
  if (tool === 'erase') for (const target of [strokes, hidden]) disc(target, x, y, null);
  else if (tool === 'hidden') disc(hidden, x, y, [255, 255, 255]);
  else disc(strokes, x, y, rgb());
}

function line(from, to) {
  const steps = Math.max(1, Math.abs(to.x - from.x), Math.abs(to.y - from.y));
  for (let i = 1; i <= steps; i++) {
    dab(Math.round(from.x + ((to.x - from.x) * i) / steps), Math.round(from.y + ((to.y - from.y) * i) / steps));
  }
}

const anything = (target) => target.getContext('2d').getImageData(0, 0, W, H).data.some((x, i) => i % 4 === 3 && x);

function remember() {
  past.push([strokes, hidden].map((target) => target.getContext('2d').getImageData(0, 0, W, H)));
  if (past.length > 30) past.shift();
}

function send() {
  has.strokes = anything(strokes);
  has.hidden = anything(hidden);
  draw();
  const uri = (name, target) => (has[name] ? target.toDataURL('image/png') : null);
  props.value = { photo: has.photo ? props.value.photo : null, strokes: uri('strokes', strokes),
    hidden: uri('hidden', hidden) };
  trigger('painted');
}

function at(event) {
  const box = view.getBoundingClientRect();
  return { x: Math.floor(((event.clientX - box.left) / box.width) * W),
    y: Math.floor(((event.clientY - box.top) / box.height) * H) };
}

view.addEventListener('pointerdown', (event) => {
  event.preventDefault();
  view.setPointerCapture(event.pointerId);
  remember();
  last = spot = at(event);
  dab(last.x, last.y);
  has[tool] = true;
  draw();
});
view.addEventListener('pointermove', (event) => {
  if (!last) return;
  const to = at(event);
  line(last, to);
  last = spot = to;
  draw();
});
for (const name of ['pointerup', 'pointercancel']) {
  view.addEventListener(name, () => { if (last) { last = null; send(); } });
}
let painting = false;  // by the keyboard: space is down
view.addEventListener('keydown', (event) => {
  const step = event.shiftKey ? 4 : 1;
  const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[
    event.key] || [0, 0];
  if (event.key === ' ' && !painting) { painting = true; remember(); dab(spot.x, spot.y); has[tool] = true; }
  else if (dx || dy) {
    const to = { x: Math.min(W - 1, Math.max(0, spot.x + dx)), y: Math.min(H - 1, Math.max(0, spot.y + dy)) };
    if (painting) line(spot, to);
    spot = to;
  } else if (event.key !== ' ') return;
  event.preventDefault();
  draw();
});
const lift = () => { if (painting) { painting = false; send(); } };
view.addEventListener('keyup', (event) => { if (event.key === ' ') lift(); });
view.addEventListener('focus', () => { focused = view.matches(':focus-visible'); draw(); });
view.addEventListener('blur', () => { focused = false; lift(); draw(); });
undo.addEventListener('click', () => {
  const before = past.pop();
  if (!before) return;
  [strokes, hidden].forEach((target, i) => target.getContext('2d').putImageData(before[i], 0, 0));
  send();
});
clear.addEventListener('click', () => {
  past = [];
  for (const target of [strokes, hidden]) target.getContext('2d').clearRect(0, 0, W, H);
  if (props.colours) has.photo = false;
  send();
});

function load() {  // a value from the server: a picture, with nothing painted on it
  const uri = props.value && props.value.photo;
  past = [];
  for (const target of [photo, strokes, hidden]) target.getContext('2d').clearRect(0, 0, W, H);
  has = { photo: Boolean(uri), strokes: false, hidden: false };
  if (!uri) return draw();
  const image = new Image();
  image.onload = () => { photo.getContext('2d').drawImage(image, 0, 0); draw(); };
  image.src = uri;
}

mark();
load();
watch('value', load);
