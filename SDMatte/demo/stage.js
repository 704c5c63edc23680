// The stage: an image with the gestures of a visitor (points, a box, strokes). Python sends the value
// {image, width, height, matte, gestures, seen}, where seen are the gestures of the matte, and gets back {gestures}, plus {path, name} of an upload or {sample}.
// Coordinates are pixels of the full-size image; the canvas shows a reduced copy.
const find = (selector) => element.querySelector(selector);
const canvas = find('canvas'), pen = canvas.getContext('2d'), input = find('input[type=file]');
const accent = '#f97316', STROKES = ['paint', 'remove'];
let image = null, matte = null, size = [1, 1], gestures = [], current = null;
let tool = find('[data-tool]')?.dataset.tool;

const load = (url) => new Promise((done) => {
  if (!url) return done(null);
  const loaded = new Image();
  loaded.onload = () => done(loaded);
  loaded.src = url;
});

function line(points, width, color) {
  pen.strokeStyle = color; pen.lineWidth = width; pen.lineCap = pen.lineJoin = 'round';
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  if (points.length === 1) pen.lineTo(points[0][0] + 0.01, points[0][1]);
  pen.stroke();
}

function draw() {
  if (!image) return;
  canvas.width = image.width; canvas.height = image.height; // also clears the canvas
  pen.drawImage(image, 0, 0);
  if (matte) pen.drawImage(matte, 0, 0, canvas.width, canvas.height);
  const scale = image.width / size[0], fine = image.width / (canvas.clientWidth || image.width);
  for (const {tool, points, width} of current ? [...gestures, current] : gestures) {
    const at = points.map(([x, y]) => [x * scale, y * scale]);
    if (tool === 'points') {
      for (const [radius, color] of [[8, 'white'], [5.5, accent]]) {
        pen.beginPath(); pen.arc(...at[0], radius * fine, 0, 7);
        pen.fillStyle = color; pen.fill();
      }
    } else if (tool === 'box') {
      for (const [width, color] of [[4, 'white'], [2.5, accent]]) {
        pen.lineWidth = width * fine; pen.strokeStyle = color;
        pen.strokeRect(...at[0], at[1][0] - at[0][0], at[1][1] - at[0][1]);
      }
    } else {
      line(at, width * scale, tool === 'paint' ? 'rgba(34,197,94,.55)' : 'rgba(239,68,68,.55)');
    }
  }
}

function choose(name) {
  tool = name;
  element.querySelectorAll('[data-tool]').forEach((button) =>
    button.setAttribute('aria-pressed', String(button.dataset.tool === name)));
  find('.brush').hidden = !STROKES.includes(name);
}

function at(event) {
  const area = canvas.getBoundingClientRect();
  const position = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  const most = tool === 'box' ? 0 : 1; // a box may end at the image's edge, a point must be inside
  return position.map((p, i) => Math.min(Math.max(Math.floor(p * size[i]), 0), size[i] - most));
}

canvas.addEventListener('pointerdown', (event) => {
  if (!image || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  const width = (find('.brush input').value / 100) * Math.max(...size);
  const isStroke = STROKES.includes(tool), point = at(event);
  // Prompts of different kinds do not mix, and a box replaces the last one.
  gestures = gestures.filter((g) => tool !== 'box' && STROKES.includes(g.tool) === isStroke && g.tool !== 'box');
  current = {tool, width, points: tool === 'box' ? [point, point] : [point]};
  draw();
});
canvas.addEventListener('pointermove', (event) => {
  if (!current || tool === 'points') return;
  if (tool === 'box') current.points[1] = at(event); else current.points.push(at(event));
  draw();
});
canvas.addEventListener('pointerup', () => {
  const [a, b] = current?.points ?? [];
  if (current && (tool !== 'box' || (a[0] !== b[0] && a[1] !== b[1]))) gestures.push(current);
  current = null;
  props.value = {gestures};
  draw();
});
canvas.addEventListener('pointercancel', () => { current = null; draw(); });

async function open(file) {
  if (!file) return;
  find('.drop').classList.add('busy');
  try {
    // Uploads of equal images share a folder, in which each needs a name of its own.
    const name = Math.random() + (file.name.match(/\.\w+$/)?.[0] ?? '');
    const {path} = await upload(new File([file], name, {type: file.type}));
    props.value = {gestures, path, name: file.name};
  } catch {
    props.value = {gestures, name: file.name}; // no path: the upload was rejected
  }
  trigger('upload');
  input.value = '';
  find('.drop').classList.remove('busy');
}
input.addEventListener('change', () => open(input.files[0]));
element.addEventListener('dragover', (event) => event.preventDefault());
element.addEventListener('drop', (event) => { event.preventDefault(); open(event.dataTransfer.files[0]); });
element.addEventListener('click', ({target}) => {
  const data = target.closest('button')?.dataset ?? {};
  if (data.tool) choose(data.tool);
  if (data.sample) { props.value = {gestures, sample: Number(data.sample)}; trigger('upload'); }
  if (data.do === 'undo') trigger('undo');
  if (data.do === 'open') input.click();
});

watch('value', async () => {
  const value = props.value ?? {};
  if (!('matte' in value)) return;
  [image, matte] = await Promise.all([value.image ? load(value.image) : image, load(value.matte)]);
  // What was drawn while the matte was computed stays.
  const text = JSON.stringify, seen = value.seen ?? gestures;
  if (text(gestures.slice(0, seen.length)) === text(seen))
    gestures = [...value.gestures, ...gestures.slice(seen.length)];
  if (value.image) size = [value.width, value.height];
  props.value = {gestures}; // so that the next event does not send the image back
  find('.stage').classList.toggle('opened', !!image);
  const add = find('[data-tool=paint]'), remove = find('[data-tool=remove]');
  if (add) { add.textContent = matte ? 'Add' : 'Paint'; remove.hidden = !matte; }
  if (tool === 'remove' && !matte) choose('paint');
  draw();
});
choose(tool);
