// Two maps and their signed difference: two heads, two outputs of a beam, two models or checkpoints.
import { useMemo } from "preact/hooks";
import { usePage } from "../context";
import { headsName, siteName, training, type Grid, type MapInfo, type Run } from "../document";
import { HeadPicker, Heatmap, Legend, RunPicker, runName } from "../parts";
import { isLarge, type Place } from "../state";
import { pooled } from "../tiles";

const CELLS = 32; // of a long map, to a side

/** a − b, where both have the same names on both axes; null where they have not the same size. */
export function difference(a: Grid, b: Grid): Grid | null {
  if (a.rows.names.length !== b.rows.names.length || a.columns.names.length !== b.columns.names.length) return null;
  const cells = a.cells.map((x, n) => x - b.cells[n]);
  let largest = 0;
  for (const cell of cells) if (Math.abs(cell) > largest) largest = Math.abs(cell);
  return { ...a, cells, largest, nan: a.nan || b.nan };
}

export function Compare() {
  const page = usePage();
  const runs = page.document.value.runs;
  const a: { run: Run; map: MapInfo; heads: number[] } = { run: page.run.value, map: page.map.value, heads: page.heads.value };
  const steps = training(runs, a.run);
  const named = (n: number) => (runs[n].made?.step === undefined ? "the trained model" : `step ${runs[n].made!.step}`);
  // at first: of a training its first checkpoint; else another head; of a single head, another layer; of a single map, another run
  const start = page.other.value ?? (steps.length ? { run: steps.find((n) => n !== page.runIndex.value)!, site: a.map.site, head: a.heads.length > 1 ? "mean" as const : a.heads[0] }
    : a.map.how.heads > 1 ? { run: page.runIndex.value, site: a.map.site, head: (a.heads[0] + 1) % a.map.how.heads }
    : a.run.maps.length > 1 ? { run: page.runIndex.value, site: a.run.maps.find((m) => m !== a.map)!.site, head: "mean" as const }
      : { run: (page.runIndex.value + 1) % runs.length, site: a.map.site, head: "mean" as const });
  const at = steps.indexOf(start.run);
  const run = runs[Math.min(start.run, runs.length - 1)];
  const map = run.maps.find((m) => m.site === start.site) ?? run.maps[run.maps.length - 1];
  const all = Array.from({ length: map.how.heads }, (_, h) => h);
  const heads = start.head === "mean" ? all : [Math.min(start.head, map.how.heads - 1)];
  const large = isLarge(a.map) || isLarge(map);
  const [left, right] = useMemo(() => (large ? [a, { map, heads }].map((one) => pooled(page.reader.value, one.map, one.heads, CELLS))
    : [page.grid.value, page.reader.value.grid(run, map, heads, page.byWords.value)]), [page.grid.value, page.reader.value, a.map, map, String(a.heads), String(heads)]);
  const pointed = large ? {} : { place: page.place.value, onPlace: (p: Place) => { page.hover.value = p; } };
  const both = difference(left, right);
  const most = Math.max(left.largest, right.largest);
  const set = (part: Partial<typeof start>) => (page.other.value = { ...start, ...part });
  const describe = (r: Run, m: MapInfo, h: number[]) => `${a.run !== run ? `${r.label}: ` : ""}${headsName(h, m.how.heads)} of ${siteName(m.site)}`;
  return (
    <>
      <section class="card">
        <header><h2>Two maps, and their difference</h2><span class="note">the first is the one that the other views show</span></header>
        <div class="bar-line" style={{ marginBottom: "10px" }}><b>first</b><RunPicker /><HeadPicker /></div>
        <div class="bar-line">
          <b>second</b>
          {runs.length > 1 && <select aria-label="other run" value={String(start.run)} onChange={(e) => set({ run: Number(e.currentTarget.value) })}>{runs.map((r, i) => <option key={i} value={String(i)}>{runName(r)}</option>)}</select>}
          <select aria-label="other site" value={map.site} onChange={(e) => set({ site: e.currentTarget.value })}>{run.maps.map((m) => <option key={m.site} value={m.site}>{siteName(m.site)}</option>)}</select>
          {map.how.heads > 1 && <select aria-label="other head" value={String(start.head)} onChange={(e) => set({ head: e.currentTarget.value === "mean" ? "mean" : Number(e.currentTarget.value) })}><option value="mean">mean of its heads</option>{all.map((h) => <option key={h} value={String(h)}>head {h}</option>)}</select>}
        </div>
        {steps.length > 0 && (
          <div class="bar-line" style={{ marginTop: "10px" }}>
            <b>training</b>
            <input
              type="range" aria-label="checkpoint" min={0} max={steps.length - 1} step={1} value={Math.max(0, at)} aria-valuetext={at < 0 ? "none" : named(steps[at])}
              onInput={(e) => set({ run: steps[Number(e.currentTarget.value)] })}
            />
            <span class="note" aria-live="polite">{at < 0 ? "the second is none of its checkpoints" : `the second: ${named(steps[at])} (${at + 1} of ${steps.length})`}</span>
          </div>
        )}
      </section>
      {large && <p class="note">Maps of more than 256 tokens are compared in cells: of each the largest weight, or the mean of those of the heads. Numbers are those of tokens, from 0.</p>}
      <div class="trio level">
        <section class="card"><header><h2>{describe(a.run, a.map, a.heads)}</h2><span class="grow" /><Legend most={most} nan={left.nan} /></header><Heatmap grid={left} most={most} label="first map" {...pointed} /></section>
        <section class="card"><header><h2>{describe(run, map, heads)}</h2><span class="grow" /><Legend most={most} nan={right.nan} /></header><Heatmap grid={right} most={most} label="second map" {...pointed} /></section>
        <section class="card">
          <header><h2>first − second</h2><span class="grow" />{both && <Legend low={-(both.largest || 1)} most={both.largest || 1} difference nan={both.nan} />}</header>
          {both ? <Heatmap grid={both} low={-(both.largest || 1)} most={both.largest || 1} difference label="difference" {...pointed} />
            : <p>The first has {left.rows.names.length} × {left.columns.names.length} weights and the second {right.rows.names.length} × {right.columns.names.length}: only maps of one size are subtracted.</p>}
        </section>
      </div>
    </>
  );
}
