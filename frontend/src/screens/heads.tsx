// All heads of all layers at once: sorted, grouped by likeness, and a click away from the alignment.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { usePage } from "../context";
import { ASKED, headName, roles, rolesOfLong, siteName, type Atlas, type Grid, type MapInfo, type Roles } from "../document";
import { ask } from "../live";
import { draw, Legend, number, paintCells } from "../parts";
import { isLarge } from "../state";
import { pooled } from "../tiles";

interface Entry {
  map: MapInfo;
  head: number;
  grid: Grid;
  found: Roles;
  /** In the corpus: the fall of the log-probability without this head, and its role. */
  importance?: number;
  role?: string;
}

const ORDERS = { layer: "by layer", role: "by role", entropy: "lowest entropy first", importance: "most important first", alike: "similar heads together" };
type Order = keyof typeof ORDERS;

/** Cosine of two maps of one size; 0 where the sizes differ. */
export function likeness(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return 0;
  let ab = 0, aa = 0, bb = 0;
  for (let n = 0; n < a.length; n++) {
    ab += a[n] * b[n];
    aa += a[n] * a[n];
    bb += b[n] * b[n];
  }
  return aa && bb ? ab / Math.sqrt(aa * bb) : 0;
}

/** Groups of heads: each joins the first group whose first member is alike enough. */
export function groups<T>(entries: T[], alike: (a: T, b: T) => number, least = 0.9): T[][] {
  const found: T[][] = [];
  for (const entry of entries) {
    const group = found.find((one) => alike(one[0], entry) >= least);
    if (group) group.push(entry);
    else found.push([entry]);
  }
  return found.sort((a, b) => b.length - a.length);
}

/** How many thumbnails of a layer stand side by side, so that its rows are even. */
export const abreast = (heads: number): number => Math.ceil(heads / Math.ceil(heads / 6));

function Thumb({ entry, most, named }: { entry: Entry; most: number; named: boolean }) {
  const page = usePage();
  const canvas = useRef<HTMLCanvasElement>(null);
  const scale = page.scale.value;
  useLayoutEffect(() => {
    draw(canvas.current!, 100, 100, (c) => paintCells(c, entry.grid.cells, entry.grid.rows.names.length, entry.grid.columns.names.length, scale, 0, most, [0, 0, 100, 100]));
  }, [entry, most, scale]);
  const name = headName(entry.head, entry.map.how.heads);
  const here = page.map.value.site === entry.map.site && page.heads.value.length === 1 && page.heads.value[0] === entry.head;
  return (
    <button
      class={`thumb${here ? " on" : ""}`} title={`${siteName(entry.map.site)}, ${name}: ${entry.role ?? entry.found.name}`}
      onClick={() => { page.site.value = entry.map.site; page.head.value = entry.head; page.screen.value = "align"; }}
    >
      <canvas ref={canvas} role="img" aria-label={`map of ${siteName(entry.map.site)}, ${name}`} />
      <span>{name}</span>
      {named && <small>{siteName(entry.map.site)}</small>}
      <small>{entry.role ?? entry.found.name}</small>
      {entry.importance !== undefined && <small>ablated: {number(-entry.importance, 3)}</small>}
    </button>
  );
}

/** What was measured over a corpus, or how it is measured: roles and importance of one sentence prove nothing. */
function Corpus() {
  const page = usePage();
  const { atlas, live, model, task } = page.document.value;
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const measure = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setFault("");
    try {
      const found = await ask<Atlas>(live!, "atlas", { texts: text.split("\n").map((line) => line.trim()).filter(Boolean) });
      page.document.value = { ...page.document.value, atlas: found };
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
    setBusy(false);
  };
  return (
    <div class="corpus">
      <p class="note">
        {atlas ? `Over ${atlas.texts} ${atlas.own ? "given sentences" : "sample sentences"}: roles by regard.roles (sign test, corrected over all heads); “ablated” is the change of the mean log-probability per token when the head's output is 0, in nats. “Nearly uniform” is said of this one input.`
          : "The words under a head describe this one input."}
        {!atlas && live?.asks.includes("atlas") && " Importance and tested roles need a corpus:"}
        {!atlas && !live && model && (task === "translate" || task === "complete") && <> Importance and tested roles need a corpus: <code>regard look {model} "text" --save page.html --atlas</code></>}
      </p>
      {live?.asks.includes("atlas") && (
        <form class="bar-line" onSubmit={measure}>
          <textarea aria-label="sentences, one a line" rows={2} placeholder="sentences, one a line; empty: samples in the model's language" value={text} onInput={(e) => setText(e.currentTarget.value)} />
          <button disabled={busy}>{busy ? "measuring …" : "measure importance and roles"}</button>
          {fault && <span role="alert" class="believe doubt">{fault}</span>}
        </form>
      )}
    </div>
  );
}

export function Heads() {
  const page = usePage();
  const run = page.run.value;
  const [order, setOrder] = useState<Order>("layer");
  const atlas = run.made?.own === false ? undefined : page.document.value.atlas; // of the page's first model
  const entries = useMemo<Entry[]>(() => run.maps.flatMap((map) => {
    const reader = page.reader.value, square = map.columns === map.rows ? map.how.queries === map.how.keys : map.rows === "output" && map.columns === "before";
    return Array.from({ length: map.how.heads }, (_, head) => {
      const large = isLarge(map);
      const grid = large ? pooled(reader, map, [head], 100) : reader.grid(run, map, [head], false);
      const found = large ? rolesOfLong(reader, map, head, square) : roles(grid, square);
      const role = atlas?.roles.find((one) => one.site === map.site && one.head === head);
      return { map, head, grid, importance: atlas?.importance[map.site]?.[head], found, role: atlas ? role?.role ?? (found.even ? found.name : "no significant role") : undefined };
    });
  }), [run, page.reader.value, atlas]);
  const most = entries.reduce((n, e) => Math.max(n, e.grid.largest), 0) || 1;
  const importance = (e: Entry) => e.importance ?? -Infinity;
  const shelves: [string, Entry[]][] = useMemo(() => {
    if (order === "role") {
      const by = new Map<string, Entry[]>();
      for (const e of entries) by.set(e.role ?? e.found.name, [...(by.get(e.role ?? e.found.name) ?? []), e]);
      return [...by].sort((a, b) => b[1].length - a[1].length);
    }
    if (order === "entropy") return [["most focused heads first", [...entries].sort((a, b) => a.found.entropy - b.found.entropy)]];
    if (order === "importance") return [["largest effect first", [...entries].sort((a, b) => importance(b) - importance(a))]];
    if (order === "alike") return groups(entries, (a, b) => likeness(a.grid.cells, b.grid.cells)).map((group, n) => [group.length > 1 ? `group ${n + 1}: ${group.length} heads` : "alone", group]);
    const by = new Map<string, Entry[]>();
    for (const e of entries) by.set(siteName(e.map.site), [...(by.get(siteName(e.map.site)) ?? []), e]);
    return [...by];
  }, [entries, order]);
  return (
    <section class="card" data-tour="heads">
      <header>
        <h2>All heads</h2><span class="note">one scale for all, so equal attention has equal colour; choose one to see its words</span><span class="grow" /><Legend most={most} />
      </header>
      <div class="chips" role="group" aria-label="order" style={{ marginBottom: "14px" }}>
        {(Object.keys(ORDERS) as Order[]).filter((one) => one !== "importance" || atlas).map((one) => (
          <button key={one} aria-pressed={order === one} onClick={() => setOrder(one)}>{ORDERS[one]}</button>
        ))}
      </div>
      {run.made?.own !== false && <Corpus />}
      {run.maps.some(isLarge) && <p class="note" style={{ marginBottom: "12px" }}>Maps of more than 256 tokens are drawn in cells, each the largest of its weights; the words under them are those of at most {ASKED} rows.</p>}
      <div class="atlas">
        {shelves.map(([name, those]) => (
          <div class="shelf" key={name} style={shelves.length === 1 ? { gridColumn: "1 / -1" } : undefined}>
            <div><b>{name}</b></div>
            <div class="thumbs" style={shelves.length > 1 && order === "layer" ? { "--across": abreast(those.length) } : undefined}>{those.map((e) => <Thumb key={`${e.map.site}/${e.head}`} entry={e} most={most} named={order !== "layer"} />)}</div>
          </div>
        ))}
      </div>
    </section>
  );
}
