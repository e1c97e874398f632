"""Style and scripts of the page."""

CSS = """
.gradio-container { max-width: 1240px !important; }
.gradio-container .html-container { padding: 0 !important; }
.lgq-text h2 { margin: 0 0 2px; }
.lgq-text p { margin: 0; }
.lgq-numbers { border: 0 !important; border-collapse: collapse; font-size: 14px; margin: 0; }
.lgq-numbers tr, .lgq-numbers th, .lgq-numbers td { border: 0; border-bottom: 1px solid #d4d4d8; }
.lgq-numbers th, .lgq-numbers td { padding: 3px 16px 3px 0; text-align: left; white-space: nowrap; }
.lgq-numbers td { font-variant-numeric: tabular-nums; }
#lgq-numbers { overflow-x: auto; }
.lgq-figure { margin: 0; }
.lgq-figure figcaption { font-size: 14px; margin-bottom: 2px; overflow-wrap: anywhere; }
.lgq-figure img { width: 100%; max-height: 480px; object-fit: contain; object-position: left top; margin: 0;
  image-rendering: pixelated; }
#lgq-highlighted img { image-rendering: auto; }
.lgq-empty { border: 1px dashed #a1a1aa; border-radius: 4px; aspect-ratio: 1; }
#lgq-alone { max-width: 140px; }
.lgq-samples { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; align-items: start; }
.lgq-samples button { font-size: 12px; font-weight: 400; padding: 0; border: 0; background: none; color: inherit;
  cursor: pointer; }
.lgq-samples img { width: 100%; aspect-ratio: 1; margin: 0; border-radius: 4px; }
.lgq-grid { position: relative; width: 100%; cursor: crosshair; outline-offset: 2px; }
.lgq-grid img { width: 100%; height: 100%; display: block; margin: 0; image-rendering: pixelated; }
.lgq-grid div { position: absolute; pointer-events: none; box-sizing: border-box; }
.lgq-edited { outline: 1px solid #fff; box-shadow: 0 0 0 2px #000; }
.lgq-selected { outline: 2px solid #000; box-shadow: 0 0 0 4px #fff; }
.lgq-pointed { margin-top: 6px; min-height: 1.5em; font-size: 14px; font-variant-numeric: tabular-nums; }
"""

# These run once for their component; what is in it is replaced, so listeners are on the component itself.
SAMPLES_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-sample]');
  if (button) trigger('click', {sample: Number(button.dataset.sample)});
});
"""
GRID_SCRIPT = """
let focused = false;  // a grid that replaces the one that had the focus gets it, so that arrow keys go on
watch('value', () => { if (focused && grid()) grid().focus({preventScroll: true}); });
const grid = () => element.querySelector('.lgq-grid');
const shape = () => [Number(grid().dataset.rows), Number(grid().dataset.columns)];
const under = event => {
  if (!event.target.closest('.lgq-grid')) return null;
  const box = grid().getBoundingClientRect(), [rows, columns] = shape();
  const row = Math.floor((event.clientY - box.top) / box.height * rows);
  const column = Math.floor((event.clientX - box.left) / box.width * columns);
  return row >= 0 && row < rows && column >= 0 && column < columns ? {row, column} : null;
};
element.addEventListener('mousemove', event => {
  const at = under(event);
  if (!at) return;
  const code = grid().dataset.tokens.split(',')[at.row * shape()[1] + at.column];
  const text = `row ${at.row}, column ${at.column}: code ${code}`;
  grid().title = text;
  element.querySelector('.lgq-pointed').textContent = text;
});
element.addEventListener('click', event => {
  const at = under(event);
  focused = at !== null;
  if (at) trigger('click', at);
});
element.addEventListener('keydown', event => {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!step || !event.target.closest('.lgq-grid')) return;
  event.preventDefault();
  focused = true;
  const [rows, columns] = shape(), chosen = grid().dataset.selected;
  const [row, column] = chosen ? chosen.split(',').map(Number) : [0, 0];
  const at = chosen ? {row: row + step[0], column: column + step[1]} : {row, column};
  if (at.row >= 0 && at.row < rows && at.column >= 0 && at.column < columns) trigger('click', at);
});
"""

__all__ = ["CSS", "GRID_SCRIPT", "SAMPLES_SCRIPT"]
