// Parts that several screens are made of: a map with its names, a legend, bars, the choice of a head.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { colour, css, inkOn, styled, type Scale } from "./colour";
import { usePage } from "./context";
import { entropy, headsName, siteName, type Grid, type Run } from "./document";
import { NOWHERE, within, type Place } from "./state";

/** A number's text with the typographic minus sign; none before a zero. */
export const minus = (text: string): string => text.replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");
export const number = (x: number, digits = 3): string => minus(Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(digits));
/** What is said of tokens that begin with the sign of a space. */
export const spaces = (names: string[]): string => (names.some((name) => name.includes("▁")) ? "; ▁ in a token is a space" : "");
export const share = (x: number): string => (x > 0 && x < 0.001 ? "<0.001" : x.toFixed(3));

/** A token's text, or signs for the white space that it is. */
export const visible = (name: string): string => (name.trim() ? name : name.replaceAll(" ", "␣").replaceAll("\n", "↵"));
/** Names to choose among: with their numbers from 1, where others are the same. */
export function toldApart(names: string[]): string[] {
  const often = new Map<string, number>();
  for (const name of names) often.set(name, (often.get(name) ?? 0) + 1);
  return names.map((name, n) => (often.get(name)! > 1 ? `${visible(name)} (key ${n + 1})` : visible(name)));
}

/** Draws on a canvas of CSS size width × height, sharp on any screen. */
export function draw(canvas: HTMLCanvasElement, width: number, height: number, paint: (c: CanvasRenderingContext2D) => void) {
  const ratio = Math.min(3, globalThis.devicePixelRatio || 1);
  const wide = Math.max(1, Math.round(width * ratio)), high = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== wide) canvas.width = wide; // only where it changes: a canvas is made anew by it
  if (canvas.height !== high) canvas.height = high;
  const context = canvas.getContext("2d")!;
  context.save();
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  paint(context);
  context.restore();
}

/** Paints cells into a box, one pixel a cell, enlarged without blending; a cell that is no number in a colour of its own. */
export function paintCells(
  context: CanvasRenderingContext2D, cells: ArrayLike<number>, rows: number, columns: number,
  { weights, difference, none }: Scale, low: number, most: number, box: [number, number, number, number],
) {
  const colours = low < 0 ? difference : weights;
  if (!rows || !columns) return;
  const image = new ImageData(columns, rows);
  for (let n = 0; n < rows * columns; n++) {
    const [r, g, b] = Number.isNaN(cells[n]) ? none : colour(colours, cells[n] - low, most - low);
    image.data[4 * n] = r;
    image.data[4 * n + 1] = g;
    image.data[4 * n + 2] = b;
    image.data[4 * n + 3] = 255;
  }
  const own = document.createElement("canvas");
  own.width = columns;
  own.height = rows;
  own.getContext("2d")!.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(own, ...box);
}

/** An end of a scale: two decimals, or one digit of what would have none of them. */
const ended = (x: number): string => minus(x && Math.abs(x) < 0.005 ? String(Number(x.toPrecision(1))) : x.toFixed(2));

export function Legend({ low = 0, most, difference = false, of = "weight", nan = false }: { low?: number; most: number; difference?: boolean; of?: string; nan?: boolean }) {
  const page = usePage();
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = difference ? page.scale.value.difference : page.scale.value.weights;
  useLayoutEffect(() => {
    draw(canvas.current!, 110, 9, (c) => {
      for (let x = 0; x < 110; x++) {
        c.fillStyle = css(colour(colours, x, 109));
        c.fillRect(x, 0, 1, 9);
      }
    });
  }, [colours]);
  return (
    <span class="legend">
      <span>{ended(low)}</span>
      <canvas ref={canvas} role="img" aria-label={`colours from ${ended(low)} to ${ended(most)}`} />
      <span>{ended(most)}</span>
      <span>{difference ? "difference of weights" : of}</span>
      {nan && <><i class="none" style={{ background: css(page.scale.value.none) }} /><span>NaN</span></>}
    </span>
  );
}

/** A table that may be wider than its place: it is scrolled by a finger, and by the keyboard. */
export function Scrolled({ label, children }: { label: string; children: ComponentChildren }) {
  return <div class="sum" tabIndex={0} role="group" aria-label={label}>{children}</div>;
}

interface Pointed {
  place?: Place;
  onPlace?: (place: Place) => void;
  onPin?: (place: Place) => void;
}

/** Places of a map as those of the part of it that is shown. */
export function inGrid(grid: Grid, { place, onPlace, onPin }: Pointed): Pointed {
  const outer = (tell?: (place: Place) => void) => tell && (({ row, column }: Place) => tell({ row: row === null ? row : row + grid.top, column: column === null ? column : column + grid.left }));
  return { place: place && within(grid, place), onPlace: outer(onPlace), onPin: outer(onPin) };
}

interface HeatmapProps extends Pointed {
  grid: Grid;
  label: string;
  rowsAre?: string;
  columnsAre?: string;
  low?: number;
  most?: number;
  difference?: boolean;
  margins?: boolean;
}

/** A map of at most some hundred names: cells on a canvas, names as text. */
export function Heatmap(props: HeatmapProps) {
  const page = usePage();
  const { grid } = props;
  const { place, onPlace, onPin } = inGrid(grid, props);
  const rows = grid.rows.names.length;
  const columns = grid.columns.names.length;
  const canvas = useRef<HTMLCanvasElement>(null);
  const outer = useRef<HTMLDivElement>(null);
  const [room, setRoom] = useState(640);
  const [tip, setTip] = useState<{ x: number; y: number; text: string } | null>(null);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => outer.current && setRoom(outer.current.clientWidth));
    observer.observe(outer.current!);
    return () => observer.disconnect();
  }, []);
  const longest = Math.min(15, grid.columns.names.reduce((n, name) => Math.max(n, [...name].length), 1));
  const corner = props.rowsAre ? Math.max(props.rowsAre.length, props.columnsAre?.length ?? 0) * 6.6 + 26 : 0;
  const side = Math.max(corner, Math.min(22, grid.rows.names.reduce((n, name) => Math.max(n, [...name].length), 1)) * 7.8 + 16);
  const margin = props.margins ? 46 : 0;
  const wide = (beyond: number) => Math.floor((room - side - margin - beyond) / Math.max(1, columns));
  // slanted names lean over the right edge, upright ones do not
  const cell = wide(60) >= 18 ? Math.min(60, wide(60)) : Math.max(11, Math.min(17, wide(4)));
  const tall = Math.max(14, Math.min(cell, 34));
  const numbered = cell >= 36;
  const width = columns * cell;
  const height = rows * tall;
  const steep = cell < 18; // slanted names would overlap: they stand upright
  const top = Math.max(52, longest * (steep ? 7.6 : 5.6) + 16);
  const scale = page.scale.value;
  const low = props.low ?? 0;
  const most = props.most ?? (grid.largest || 1);
  const coverage = new Float32Array(columns);
  for (let n = 0; n < grid.cells.length; n++) if (!Number.isNaN(grid.cells[n])) coverage[n % columns] += grid.cells[n];
  const highest = coverage.reduce((a, b) => Math.max(a, b), 0) || 1;
  const dark = page.dark.value;

  useLayoutEffect(() => {
    draw(canvas.current!, width + margin, height + margin, (c) => {
      paintCells(c, grid.cells, rows, columns, scale, low, most, [0, 0, width, height]);
      if (numbered) {
        c.font = "11px ui-sans-serif, system-ui, sans-serif";
        c.textAlign = "center";
        c.textBaseline = "middle";
        grid.cells.forEach((x, n) => {
          if (Math.abs(x) < 0.005) return;
          c.fillStyle = inkOn(Number.isNaN(x) ? scale.none : colour(low < 0 ? scale.difference : scale.weights, x - low, most - low));
          c.fillText(Number.isNaN(x) ? "NaN" : minus(x.toFixed(2)), ((n % columns) + 0.5) * cell, (Math.floor(n / columns) + 0.5) * tall + 0.5);
        });
      }
      if (cell >= 18) {
        c.strokeStyle = styled(canvas.current!, "--card");
        c.lineWidth = 1;
        c.beginPath();
        for (let x = 1; x < columns; x++) { c.moveTo(x * cell, 0); c.lineTo(x * cell, height); }
        for (let y = 1; y < rows; y++) { c.moveTo(0, y * tall); c.lineTo(width, y * tall); }
        c.stroke();
      }
      if (props.margins) {
        c.fillStyle = styled(canvas.current!, "--margin");
        const most = Math.log(Math.max(2, columns));
        for (let y = 0; y < rows; y++) {
          const own = entropy(grid.cells.subarray(y * columns, (y + 1) * columns)) / most;
          c.fillRect(width + 6, y * tall + tall / 4, Math.max(1, own * (margin - 8)), tall / 2);
        }
        for (let x = 0; x < columns; x++) {
          c.fillRect(x * cell + cell / 4, height + 6, cell / 2, Math.max(1, (coverage[x] / highest) * (margin - 8)));
        }
      }
      c.strokeStyle = styled(canvas.current!, "--ring");
      c.lineWidth = 1.5;
      if (place?.row != null && place.row < rows) c.strokeRect(0.75, place.row * tall + 0.75, width - 1.5, tall - 1.5);
      if (place?.column != null && place.column < columns) c.strokeRect(place.column * cell + 0.75, 0.75, cell - 1.5, height - 1.5);
    });
  }, [grid, room, scale, low, most, place?.row, place?.column, dark, cell]);

  const sentence = (row: number, column: number) =>
    `${grid.rows.names[row]} → ${grid.columns.names[column]}: ${props.difference ? number(grid.cells[row * columns + column]) : share(grid.cells[row * columns + column])}`;
  /** The cell under the pointer, and its weight beside it. */
  const told = (event: MouseEvent): Place | null => {
    const box = canvas.current!.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / cell);
    const row = Math.floor((event.clientY - box.top) / tall);
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    setTip({ x: event.clientX - box.left + side + 14, y: event.clientY - box.top + top + 16, text: sentence(row, column) });
    return { row, column };
  };
  const over = (event: PointerEvent) => {
    const at = told(event);
    if (at) onPlace?.(at);
    else leave();
  };
  const click = (event: MouseEvent) => { // a finger has left the map before it has clicked
    const at = told(event);
    if (at) onPin?.(at);
  };
  const leave = () => {
    setTip(null);
    onPlace?.(NOWHERE);
  };
  const keys = (event: KeyboardEvent) => {
    const step: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const at = place ?? NOWHERE;
    if (step[event.key]) {
      event.preventDefault();
      const next = {
        row: Math.min(rows - 1, Math.max(0, (at.row ?? -step[event.key][0]) + step[event.key][0])),
        column: Math.min(columns - 1, Math.max(0, (at.column ?? -step[event.key][1]) + step[event.key][1])),
      };
      onPlace?.(next);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      onPin?.(at);
    } else if (event.key === "Escape") {
      onPin?.(NOWHERE);
      leave();
    }
  };
  const said = place?.row != null && place.column != null && place.row < rows && place.column < columns ? sentence(place.row, place.column) : "";
  return (
    <div class="map" ref={outer}>
      <div class="grid" style={{ gridTemplateColumns: `${side}px auto`, gridTemplateRows: `${top}px auto` }}>
        <div class="corner">{props.rowsAre && <>{props.rowsAre} ↓<br />{props.columnsAre} →</>}</div>
        <div class="across" style={{ width: `${width + longest * 5}px` }} aria-hidden="true">
          {grid.columns.names.map((name, c) => (
            <span key={c} class={place?.column === c ? "on" : ""} style={{ left: `${c * cell + cell / 2}px`, ...(steep ? { transform: "rotate(-90deg) translateY(50%)", fontSize: `${Math.min(13, cell)}px` } : {}) }} title={name}>{name}</span>
          ))}
        </div>
        <div class="down" aria-hidden="true">
          {grid.rows.names.map((name, r) => (
            <span key={r} class={place?.row === r ? "on" : ""} style={{ height: `${tall}px`, lineHeight: `${tall}px` }} title={name}>{name}</span>
          ))}
        </div>
        <div class="focus" tabIndex={0} role="group" aria-label={`${props.label}: ${rows} rows, ${columns} columns; arrow keys move, Enter pins`} onKeyDown={keys}>
          <canvas
            ref={canvas} class="cells" data-cell={cell} data-tall={tall} style={{ width: `${width + margin}px`, height: `${height + margin}px` }}
            role="img" aria-label={props.label}
            onPointerMove={over} onPointerLeave={leave} onClick={click}
          />
        </div>
      </div>
      {tip && <div class="tip" style={{ left: `${tip.x}px`, top: `${tip.y}px` }}>{tip.text}</div>}
      <div class="hidden" aria-live="polite">{said}</div>
    </div>
  );
}

export interface Bar {
  name: string;
  value: number;
  shown?: string;
  on?: boolean;
}

/** Numbers as a table with bars; negative ones in another colour. */
export function Bars({ bars, of, heading, most }: { bars: Bar[]; of: string; heading: string; most?: number }) {
  const largest = most ?? bars.reduce((n, bar) => Math.max(n, Math.abs(bar.value)), 0);
  return (
    <table class="bars">
      <thead><tr><th scope="col">{of}</th><th scope="col" class="number">{heading}</th><th scope="col"><span class="hidden">as a bar</span></th></tr></thead>
      <tbody>
        {bars.map((bar, n) => (
          <tr key={n} class={bar.on ? "on" : ""}>
            <td class="name" title={bar.name}>{visible(bar.name)}</td>
            <td class="number">{bar.shown ?? share(bar.value)}</td>
            <td class="track"><i class={bar.value < 0 ? "minus" : ""} style={{ width: `${(100 * Math.abs(bar.value || 0)) / (largest || 1)}%` }} /></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** What is said of the one head that a view shows where others show the mean of several. */
export const firstOf = (heads: number[]): string => (heads.length > 1 ? ` (the first of the ${heads.length} whose mean other views show)` : "");

/** A run as a choice among others. */
export const runName = (run: Run): string => (run.text ? `${run.label}: ${run.text.slice(0, 70)}` : run.label);

/** Which run is shown, where there are several. */
export function RunPicker() {
  const page = usePage();
  const runs = page.document.value.runs;
  if (runs.length < 2) return null;
  return (
    <select aria-label="run" value={String(page.runIndex.value)} onChange={(e) => { page.runIndex.value = Number(e.currentTarget.value); page.pinned.value = null; }}>
      {runs.map((one, i) => <option key={i} value={String(i)}>{runName(one)}</option>)}
    </select>
  );
}

/** Which site and head is shown, why, and the choice of another. */
export function HeadPicker({ single = false }: { single?: boolean }) {
  const page = usePage();
  const run = page.run.value;
  const map = page.map.value;
  const chosen = run.chosen && run.chosen.site === map.site;
  const byWords = !single && run.words && Object.keys(run.words).length > 0;
  return (
    <div class="bar-line" data-tour="head">
      {run.maps.length > 1 && <label>
        <span class="note">layer </span>
        <select aria-label="site" value={map.site} onChange={(e) => { page.site.value = e.currentTarget.value; page.head.value = "chosen"; }}>
          {run.maps.map((one) => <option key={one.site} value={one.site}>{siteName(one.site)}</option>)}
        </select>
      </label>}
      {map.how.heads > 1 && <label>
        <span class="note">head </span>
        <select
          aria-label="head" value={String(single ? page.heads.value[0] : page.head.value === "chosen" && !chosen ? "mean" : page.head.value)}
          onChange={(e) => { const value = e.currentTarget.value; page.head.value = value === "chosen" || value === "mean" ? value : Number(value); }}
        >
          {chosen && !single && <option value="chosen">{headsName(run.chosen!.heads, map.how.heads)} (chosen)</option>}
          {!single && <option value="mean">{map.how.heads === 1 ? "its only head" : `mean of ${map.how.heads} heads`}</option>}
          {(single || map.how.heads > 1) && page.all.value.map((h) => <option key={h} value={String(h)}>head {h}</option>)}
        </select>
      </label>}
      {byWords && (
        <span class="switch" role="group" aria-label="unit">
          <button aria-pressed={page.byWords.value} onClick={() => (page.byWords.value = true)}>words</button>
          <button aria-pressed={!page.byWords.value} onClick={() => (page.byWords.value = false)}>tokens</button>
        </span>
      )}
    </div>
  );
}

export function useEvery(milliseconds: number, running: boolean, act: () => void) {
  useEffect(() => {
    if (!running) return;
    const timer = setInterval(act, milliseconds);
    return () => clearInterval(timer);
  }, [milliseconds, running, act]);
}
