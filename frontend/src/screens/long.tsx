// A map of any length, like a street map: an overview at once, exact weights where one looks.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { usePage } from "../context";
import { names, type MapInfo, type Run, type Reader } from "../document";
import { inks, picture, styled } from "../colour";
import { draw, firstOf, HeadPicker, Legend, Scrolled, share } from "../parts";
import { Tiles, type Box as View } from "../tiles";

const RULER = 84;
const MINI = 130;
const REST = 150; // milliseconds after which a view is at rest, and its colours follow its largest weight

/** A view inside a map: never smaller than 8 weights to a side, never outside. */
export function fit(view: View, queries: number, keys: number): View {
  const height = Math.min(queries, Math.max(Math.min(8, queries), view.height));
  const width = Math.min(keys, Math.max(Math.min(8, keys), view.width));
  return {
    height, width,
    top: Math.min(queries - height, Math.max(0, view.top)),
    left: Math.min(keys - width, Math.max(0, view.left)),
  };
}

/** The strongest links of a head, at most `most`, from the overview's cells outward. */
export function strongest(reader: Reader, map: MapInfo, head: number, most: number, dim: Set<number>): { row: number; column: number; weight: number }[] {
  const one = reader.head(map, head);
  const pool = reader.tensors.get(`${map.tensors}.pool`);
  const found: { row: number; column: number; weight: number }[] = [];
  if (!pool) {
    for (let i = 0; i < map.how.queries; i++) {
      const row = one.row(i);
      for (let j = 0; j < row.length; j++) if (row[j] > 0.2 && !dim.has(j)) found.push({ row: i, column: j, weight: row[j] });
    }
  } else {
    const [, rows, columns] = pool.shape.length === 3 ? pool.shape : [1, ...pool.shape];
    const cells = reader.given(map, "pool", head)!;
    const high = Math.ceil(map.how.queries / rows), wide = Math.ceil(map.how.keys / columns);
    const hidden = new Set(Array.from(dim, (j) => Math.floor(j / wide)));
    let order: number[] = [];
    let least = 0.05; // what a cell must exceed to be among the largest
    for (let n = 0; n < rows * columns; n++) {
      if (!(cells[n] > least) || hidden.has(n % columns)) continue;
      order.push(n);
      if (order.length < 8 * most) continue;
      order = order.sort((a, b) => cells[b] - cells[a]).slice(0, most);
      least = cells[order[most - 1]];
    }
    order = order.sort((a, b) => cells[b] - cells[a]).slice(0, most);
    for (const n of order) {
      const top = Math.floor(n / columns) * high, left = (n % columns) * wide;
      let best = { row: top, column: left, weight: -1 };
      for (let i = top; i < Math.min(top + high, map.how.queries); i++) for (let j = left; j < Math.min(left + wide, map.how.keys); j++) {
        const weight = one.weight(i, j);
        if (weight > best.weight) best = { row: i, column: j, weight };
      }
      found.push(best);
    }
  }
  return found.sort((a, b) => b.weight - a.weight).slice(0, most);
}

/** Keys that take a large share of all attention: sinks. */
export function sinks(received: ArrayLike<number>, queries: number): Set<number> {
  const found = new Set<number>();
  for (let j = 0; j < received.length; j++) if (received[j] > 0.2 * queries) found.add(j);
  return found;
}

function received(reader: Reader, run: Run, map: MapInfo, head: number): ArrayLike<number> {
  const given = reader.given(map, "received", head);
  if (given) return given;
  const grid = reader.grid(run, map, [head], false);
  const sums = new Float32Array(map.how.keys);
  grid.cells.forEach((x, n) => (sums[n % map.how.keys] += x));
  return sums;
}

export function Long() {
  const page = usePage();
  const map = page.map.value;
  const run = page.run.value;
  const reader = page.reader.value;
  const head = page.heads.value[0];
  const { queries, keys } = map.how;
  const [view, setView] = useState<View>({ top: 0, left: 0, height: queries, width: keys });
  const [tip, setTip] = useState<{ x: number; y: number; text: string } | null>(null);
  const [log, setLog] = useState(page.large.value);
  const [dim, setDim] = useState(false);
  const [query, setQuery] = useState("");
  const [links, setLinks] = useState<ReturnType<typeof strongest> | null>(null);
  const main = useRef<HTMLCanvasElement>(null);
  const mini = useRef<HTMLCanvasElement>(null);
  const [version, setVersion] = useState(0);
  useEffect(() => { setView({ top: 0, left: 0, height: queries, width: keys }); setLinks(null); }, [map, queries, keys]);
  const sums = useMemo(() => received(reader, run, map, head), [reader, run, map, head]);
  const heavy = useMemo(() => sinks(sums, queries), [sums, queries]);
  const tiles = useMemo(() => new Tiles(reader, map, head, dim ? heavy : new Set()), [reader, map, head, dim, heavy]);
  useEffect(() => {
    tiles.changed = () => setVersion((n) => n + 1);
    return () => tiles.close();
  }, [tiles]);
  const rowNames = useMemo(() => names(run, map, "rows"), [run, map]), columnNames = useMemo(() => names(run, map, "columns"), [run, map]);
  // what other views show of a long map is what this one has in its middle
  useEffect(() => {
    if (!page.large.value || view.height === queries) return;
    const unit = (side: "rows" | "columns", token: number) => Math.max(0, (page.byWords.value ? run.words?.[map[side] ?? ""]?.owner[token] : undefined) ?? token);
    page.middle.value = { row: unit("rows", Math.floor(view.top + view.height / 2)), column: unit("columns", Math.floor(view.left + view.width / 2)) };
  }, [view]);
  const scale = page.scale.value;
  const dark = page.dark.value;
  const [size, setSize] = useState({ width: 800, height: 500 });
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => main.current && setSize({ width: main.current.clientWidth, height: main.current.clientHeight }));
    observer.observe(main.current!);
    return () => observer.disconnect();
  }, []);
  const inner = { width: Math.max(40, size.width - RULER), height: Math.max(40, size.height - 34) };
  const shown = tiles.shown(view, inner.height, inner.width);
  const bound = tiles.bound(view, inner.height, inner.width);
  const extent = (part: View) => {
    const all = shown.tiles.map((tile) => tile.extent(part));
    return { most: Math.max(...all.map(({ most }) => most)) || 1, nan: all.some(({ nan }) => nan) };
  };
  const [{ most, nan }, setExtent] = useState(() => extent(view));
  useEffect(() => {
    const timer = setTimeout(() => setExtent((old) => { const now = extent(view); return now.most === old.most && now.nan === old.nan ? old : now; }), REST);
    return () => clearTimeout(timer);
  }, [tiles, view, version, size]);
  const shade = (largest: number) => (log ? (x: number) => (Math.log10(Math.max(x, 1e-4)) / 4 + 1) / (Math.log10(Math.max(largest, 1.1e-4)) / 4 + 1) : (x: number) => x / largest);
  const colours = useMemo(() => inks(scale, shade(most)), [scale, log, most]);
  const whole = useMemo(() => {
    const { cells, rows, columns } = tiles.atLeast(queries / MINI, keys / MINI);
    return picture(cells, rows, columns, inks(scale, shade(cells.reduce((a, b) => (b > a ? b : a), 0) || 1)));
  }, [tiles, log, scale]);

  useLayoutEffect(() => {
    draw(main.current!, size.width, size.height, (c) => {
      const across = inner.width / view.width, down = inner.height / view.height;
      c.save();
      c.beginPath();
      c.rect(RULER, 34, inner.width, inner.height);
      c.clip();
      c.imageSmoothingEnabled = false;
      for (const tile of shown.tiles) {
        const { box } = tile;
        c.drawImage(tile.picture(colours), RULER + (box.left - view.left) * across, 34 + (box.top - view.top) * down, box.width * across, box.height * down);
      }
      c.restore();
      c.strokeStyle = styled(main.current!, "--line"); // a map's empty part has the colour of what it stands on
      c.strokeRect(RULER - 0.5, 33.5, inner.width, inner.height);
      c.fillStyle = styled(main.current!, "--soft");
      c.font = "12px ui-sans-serif, system-ui, sans-serif";
      c.textBaseline = "middle";
      const tall = inner.height / view.height, wide = inner.width / view.width;
      const every = (room: number, pixels: number) => { const n = Math.max(1, Math.ceil(pixels / room)); return n <= 1 ? 1 : 10 ** Math.ceil(Math.log10(n)) / (n <= 10 ** Math.ceil(Math.log10(n)) / 2 ? 2 : 1); };
      const rowStep = every(tall, 17), columnStep = every(wide, tall > 0 && wide > 60 ? 60 : 74);
      const clip = (name: string, n: number) => ([...name].length > n ? `${[...name].slice(0, n - 1).join("")}…` : name);
      c.textAlign = "right";
      for (let i = Math.ceil(view.top / rowStep) * rowStep; i < view.top + view.height; i += rowStep) {
        const y = 34 + (i - view.top + 0.5) * tall;
        c.fillText(rowStep === 1 ? clip(rowNames[i] ?? String(i), 11) : i.toLocaleString("en"), RULER - 8, y);
      }
      c.textAlign = "center";
      for (let j = Math.ceil(view.left / columnStep) * columnStep; j < view.left + view.width; j += columnStep) {
        const x = RULER + (j - view.left + 0.5) * wide;
        const name = columnStep === 1 ? clip(columnNames[j] ?? String(j), 9) : j.toLocaleString("en");
        c.fillText(name, Math.min(x, size.width - c.measureText(name).width / 2 - 1), 20); // not over the edge
      }
      const needle = query.trim().toLowerCase();
      if (needle) {
        c.fillStyle = styled(main.current!, "--ring");
        columnNames.forEach((name, j) => { if (name.toLowerCase().includes(needle) && j >= view.left && j < view.left + view.width) c.fillRect(RULER + (j - view.left) * wide, 28, Math.max(2, wide), 6); });
        rowNames.forEach((name, i) => { if (name.toLowerCase().includes(needle) && i >= view.top && i < view.top + view.height) c.fillRect(RULER - 6, 34 + (i - view.top) * tall, 6, Math.max(2, tall)); });
      }
    });
    draw(mini.current!, MINI, MINI, (c) => {
      c.imageSmoothingEnabled = false;
      c.drawImage(whole, 0, 0, MINI, MINI);
      c.strokeStyle = styled(mini.current!, "--ring");
      c.lineWidth = 2;
      c.strokeRect((MINI * view.left) / keys, (MINI * view.top) / queries, Math.max(4, (MINI * view.width) / keys), Math.max(4, (MINI * view.height) / queries));
    });
  }, [view, size, version, colours, whole, dark, query, tiles]);

  const at = (event: { clientX: number; clientY: number }) => {
    const box = main.current!.getBoundingClientRect();
    const x = (event.clientX - box.left - RULER) / inner.width, y = (event.clientY - box.top - 34) / inner.height;
    return { x, y, row: Math.floor(view.top + y * view.height), column: Math.floor(view.left + x * view.width) };
  };
  const zoom = (factor: number, x = 0.5, y = 0.5) =>
    setView((v) => fit({ height: v.height * factor, width: v.width * factor, top: v.top + y * v.height * (1 - factor), left: v.left + x * v.width * (1 - factor) }, queries, keys));
  const drag = useRef<{ x: number; y: number; view: View } | null>(null);
  const touches = useRef(new Map<number, { x: number; y: number }>());
  useEffect(() => {
    const canvas = main.current!;
    const wheel = (event: WheelEvent) => {
      event.preventDefault();
      const { x, y } = at(event);
      zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, x, y);
    };
    canvas.addEventListener("wheel", wheel, { passive: false });
    return () => canvas.removeEventListener("wheel", wheel);
  });
  const move = (event: PointerEvent) => {
    const held = touches.current.get(event.pointerId);
    if (held && touches.current.size === 2) {
      const [a, b] = [...touches.current.values()];
      const before = Math.hypot(a.x - b.x, a.y - b.y);
      held.x = event.clientX; held.y = event.clientY;
      const [c, d] = [...touches.current.values()];
      const after = Math.hypot(c.x - d.x, c.y - d.y);
      const { x, y } = at({ clientX: (c.x + d.x) / 2, clientY: (c.y + d.y) / 2 });
      if (after > 5) zoom(before / after, x, y);
      return;
    }
    if (drag.current) {
      const { x, y, view: start } = drag.current;
      setView(fit({ ...start, left: start.left - ((event.clientX - x) / inner.width) * start.width, top: start.top - ((event.clientY - y) / inner.height) * start.height }, queries, keys));
      return;
    }
    const p = at(event);
    if (p.x < 0 || p.y < 0 || p.row >= queries || p.column >= keys || p.row < 0 || p.column < 0) return setTip(null);
    const box = main.current!.getBoundingClientRect();
    setTip({ x: Math.min(event.clientX - box.left + 14, size.width - 220), y: event.clientY - box.top + 18, text: `${rowNames[p.row]} (${p.row.toLocaleString("en")}) → ${columnNames[p.column]} (${p.column.toLocaleString("en")}): ${share(reader.head(map, head).weight(p.row, p.column))}` });
  };
  const keysPressed = (event: KeyboardEvent) => {
    const steps: Record<string, [number, number]> = { ArrowUp: [-0.1, 0], ArrowDown: [0.1, 0], ArrowLeft: [0, -0.1], ArrowRight: [0, 0.1] };
    if (steps[event.key]) setView((v) => fit({ ...v, top: v.top + steps[event.key][0] * v.height, left: v.left + steps[event.key][1] * v.width }, queries, keys));
    else if (event.key === "+" || event.key === "=") zoom(1 / 1.4);
    else if (event.key === "-") zoom(1.4);
    else if (event.key === "0") setView({ top: 0, left: 0, height: queries, width: keys });
    else return;
    event.preventDefault();
  };
  const centre = (row: number, column: number, span = 40) => setView(fit({ top: row - span / 2, left: column - span / 2, height: span, width: span }, queries, keys));
  const hits = query.trim() ? columnNames.flatMap((name, j) => (name.toLowerCase().includes(query.trim().toLowerCase()) ? [j] : [])) : [];
  const [hit, setHit] = useState(0);
  return (
    <section class="card" data-tour="long">
      <header><h2>{queries.toLocaleString("en")} × {keys.toLocaleString("en")} weights</h2><span class="note">drag to pan, wheel or pinch to zoom; arrow keys, + − 0{map.how.heads > 1 && `; head ${head}${firstOf(page.heads.value)}`}</span><span class="grow" /><Legend low={log ? 0.0001 : 0} most={most} of={log ? "weight, log scale" : "weight"} nan={nan} /></header>
      <HeadPicker single />
      <div class="bar-line" style={{ margin: "10px 0" }}>
        <button onClick={() => zoom(1 / 1.5)} aria-label="zoom in">+</button><button onClick={() => zoom(1.5)} aria-label="zoom out">−</button>
        <button onClick={() => setView({ top: 0, left: 0, height: queries, width: keys })}>whole map</button>
        <button aria-pressed={log} onClick={() => setLog(!log)}>log scale</button>
        {heavy.size > 0 && <button aria-pressed={dim} onClick={() => setDim(!dim)}>hide {heavy.size} sink{heavy.size > 1 ? "s" : ""}</button>}
        <input type="text" aria-label="search tokens" placeholder="search tokens" value={query} onInput={(e) => { setQuery(e.currentTarget.value); setHit(0); }}
          onKeyDown={(e) => { if (e.key === "Enter" && hits.length) { const j = hits[hit % hits.length]; centre(Math.min(queries - 1, j), j); setHit(hit + 1); } }} />
        {query.trim() && <span class="note" aria-live="polite">{hits.length} found{hits.length ? ", Enter goes to the next" : ""}</span>}
        <button onClick={() => setLinks(strongest(reader, map, head, 12, dim ? heavy : new Set()))}>strongest links</button>
      </div>
      <div class="long" tabIndex={0} role="group" aria-busy={shown.missing > 0} aria-label="the map; arrow keys move, plus and minus zoom, 0 shows all" onKeyDown={keysPressed}>
        <canvas
          ref={main} class="main" role="img" aria-label={`rows ${Math.floor(view.top)} to ${Math.floor(view.top + view.height)}, columns ${Math.floor(view.left)} to ${Math.floor(view.left + view.width)}`}
          data-view={JSON.stringify([view.top, view.left, view.height, view.width])}
          onPointerDown={(e) => { touches.current.set(e.pointerId, { x: e.clientX, y: e.clientY }); e.currentTarget.setPointerCapture(e.pointerId); drag.current = touches.current.size === 1 ? { x: e.clientX, y: e.clientY, view } : null; setTip(null); }}
          onPointerUp={(e) => { touches.current.delete(e.pointerId); drag.current = null; }} onPointerCancel={(e) => { touches.current.delete(e.pointerId); drag.current = null; }}
          onPointerMove={move} onPointerLeave={() => setTip(null)}
        />
        <canvas ref={mini} class="mini" role="img" aria-label="the whole map, and where this view is" onPointerDown={(e) => { const box = e.currentTarget.getBoundingClientRect(); const y = ((e.clientY - box.top) / MINI) * queries, x = ((e.clientX - box.left) / MINI) * keys; setView((v) => fit({ ...v, top: y - v.height / 2, left: x - v.width / 2 }, queries, keys)); }} />
        {tip && <div class="tip" style={{ left: `${tip.x}px`, top: `${tip.y}px` }}>{tip.text}</div>}
      </div>
      {tiles.pooled && (
        <p class="note said">
          {bound && `Each cell is the largest of ${tiles.overview.tall} × ${tiles.overview.broad} weights. Every weight is computed once a view has at most ${bound.queries.toLocaleString("en")} queries${tiles.whole ? " (this normalizer needs whole rows)" : ` × ${bound.keys.toLocaleString("en")} keys`}: zoom in.`}
        </p>
      )}
      {links && (
        <Scrolled label="the strongest links"><table>
          <thead><tr><th>query</th><th>key</th><th>weight</th><th><span class="hidden">go there</span></th></tr></thead>
          <tbody>{links.map((l) => <tr key={`${l.row}/${l.column}`}><td>{rowNames[l.row]} ({l.row.toLocaleString("en")})</td><td>{columnNames[l.column]} ({l.column.toLocaleString("en")})</td><td>{share(l.weight)}</td><td><button onClick={() => centre(l.row, l.column)}>go there</button></td></tr>)}</tbody>
        </table></Scrolled>
      )}
    </section>
  );
}
