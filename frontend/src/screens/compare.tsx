// Two maps and their signed difference: two heads, two outputs of a beam, two models or checkpoints.
import { usePage } from "../context";
import { headsName, siteName, type Grid, type MapInfo, type Run } from "../document";
import { Heatmap, Legend } from "../parts";

/** a − b, where both have the same names on both axes; null where they have not the same size. */
export function difference(a: Grid, b: Grid): Grid | null {
  if (a.rows.names.length !== b.rows.names.length || a.columns.names.length !== b.columns.names.length) return null;
  const cells = a.cells.map((x, n) => x - b.cells[n]);
  let largest = 0;
  for (const cell of cells) largest = Math.max(largest, Math.abs(cell));
  return { rows: a.rows, columns: a.columns, cells, largest };
}

export function Compare() {
  const page = usePage();
  const runs = page.document.value.runs;
  const a: { run: Run; map: MapInfo; heads: number[] } = { run: page.run.value, map: page.map.value, heads: page.heads.value };
  const start = page.other.value ?? { run: page.runIndex.value, site: a.map.site, head: a.map.how.heads > 1 ? (a.heads[0] + 1) % a.map.how.heads : "mean" as const };
  const run = runs[Math.min(start.run, runs.length - 1)];
  const map = run.maps.find((m) => m.site === start.site) ?? run.maps[run.maps.length - 1];
  const all = Array.from({ length: map.how.heads }, (_, h) => h);
  const heads = start.head === "mean" ? all : [Math.min(start.head, map.how.heads - 1)];
  if (page.large.value || Math.max(map.how.queries, map.how.keys) > 256) return <section class="card"><p>Maps of more than 256 tokens are not compared here: choose shorter ones.</p></section>;
  const left = page.grid.value!;
  const right = page.reader.value.grid(run, map, heads, page.byWords.value);
  const both = difference(left, right);
  const most = Math.max(left.largest, right.largest);
  const set = (part: Partial<typeof start>) => (page.other.value = { ...start, ...part });
  const describe = (r: Run, m: MapInfo, h: number[]) => `${runs.length > 1 ? `${r.label}: ` : ""}${headsName(h, m.how.heads)} of ${siteName(m.site)}`;
  return (
    <>
      <section class="card">
        <header><h2>Two maps, and their difference</h2><span class="note">the first map is the one shown in the other views</span></header>
        <div class="bar-line">
          <span class="note">compare with</span>
          {runs.length > 1 && <select aria-label="other run" value={String(start.run)} onChange={(e) => set({ run: Number(e.currentTarget.value) })}>{runs.map((r, i) => <option key={i} value={String(i)}>{r.label}{r.text ? `: ${r.text.slice(0, 60)}` : ""}</option>)}</select>}
          <select aria-label="other site" value={map.site} onChange={(e) => set({ site: e.currentTarget.value })}>{run.maps.map((m) => <option key={m.site} value={m.site}>{siteName(m.site)}</option>)}</select>
          <select aria-label="other head" value={String(start.head)} onChange={(e) => set({ head: e.currentTarget.value === "mean" ? "mean" : Number(e.currentTarget.value) })}><option value="mean">mean of its heads</option>{all.map((h) => <option key={h} value={String(h)}>head {h}</option>)}</select>
        </div>
        {runs.length > 1 && (
          <label class="bar-line" style={{ marginTop: "10px" }}><span class="note">first map: output</span>
            <input type="range" aria-label="run" min={0} max={runs.length - 1} value={page.runIndex.value} onInput={(e) => (page.runIndex.value = Number(e.currentTarget.value))} style={{ flex: "1 1 200px" }} />
            <span>{page.run.value.label}</span>
          </label>
        )}
      </section>
      <div class="trio">
        <section class="card"><header><h2>{describe(a.run, a.map, a.heads)}</h2><span class="grow" /><Legend most={most} /></header><Heatmap grid={left} most={most} label="first map" place={page.place.value} onPlace={(p) => (page.hover.value = p)} /></section>
        <section class="card"><header><h2>{describe(run, map, heads)}</h2><span class="grow" /><Legend most={most} /></header><Heatmap grid={right} most={most} label="second map" place={page.place.value} onPlace={(p) => (page.hover.value = p)} /></section>
        <section class="card">
          <header><h2>first − second</h2><span class="grow" />{both && <Legend low={-(both.largest || 1)} most={both.largest || 1} difference />}</header>
          {both ? <Heatmap grid={both} low={-(both.largest || 1)} most={both.largest || 1} difference label="difference" place={page.place.value} onPlace={(p) => (page.hover.value = p)} />
            : <p>The first has {left.rows.names.length} × {left.columns.names.length} weights and the second {right.rows.names.length} × {right.columns.names.length}: only maps of one size are subtracted.</p>}
        </section>
      </div>
    </>
  );
}
