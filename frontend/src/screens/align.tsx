// What every output word was read from: ribbons and a map of the same weights, and what is known of the chosen word.
import { useMemo } from "preact/hooks";
import { usePage } from "../context";
import { columnsAre, entropy, evenness, headsName, rowsAre, siteName, type Grid } from "../document";
import { Bars, Heatmap, HeadPicker, Legend, minus, RunPicker, share } from "../parts";
import { Ribbons, UNSURE } from "../ribbons";
import { within, WINDOW, type Place } from "../state";

/** What stands out in an alignment: a sentence each. */
export function flags(grid: Grid, across: boolean): string[] {
  const rows = grid.rows.names;
  const columns = grid.columns.names;
  if (!across || rows.length < 2 || columns.length < 2) return [];
  const found: string[] = [];
  const n = columns.length;
  const known = (r: number) => !Number.isNaN(grid.cells[r * n]);
  const looked = rows.map((_, r) => {
    const row = grid.cells.subarray(r * n, (r + 1) * n);
    return row.reduce((best, x, c) => (x > row[best] ? c : best), 0);
  });
  const word = (name: string) => /[\p{L}\p{N}]/u.test(name);
  columns.forEach((name, c) => {
    let sum = 0;
    for (let r = 0; r < rows.length; r++) if (known(r)) sum += grid.cells[r * n + c];
    if (word(name) && sum < 0.15) found.push(`“${name}” gets little attention`);
  });
  for (let r = 1; r < rows.length; r++) {
    if (!known(r) || !known(r - 1)) continue;
    if (rows[r] === rows[r - 1] && looked[r] === looked[r - 1] && word(rows[r])) found.push(`“${rows[r]}” is repeated from one source word`);
    if (Math.abs(looked[r] - looked[r - 1]) > Math.max(4, n / 2) && word(rows[r]) && word(rows[r - 1])) {
      found.push(`long jump from “${columns[looked[r - 1]]}” to “${columns[looked[r]]}”`);
    }
  }
  return found;
}

function sentenceOf(grid: Grid, place: Place, across: boolean, ribbons: boolean): string {
  const n = grid.columns.names.length;
  const verb = across ? "attended to" : "attends to";
  if (place.row !== null && place.row < grid.rows.names.length) {
    const row = [...grid.cells.subarray(place.row * n, (place.row + 1) * n)];
    if (Number.isNaN(row[place.column ?? 0])) return `the weights of “${grid.rows.names[place.row]}” are NaN: one of its scores is no finite number`;
    if (place.column !== null && place.column < n) return `“${grid.rows.names[place.row]}” gives “${grid.columns.names[place.column]}” the weight ${share(row[place.column])}`;
    const order = row.map((x, c) => [x, c] as const).sort((a, b) => b[0] - a[0]).filter(([x]) => x >= 0.1).slice(0, 3);
    if (!order.length) return `“${grid.rows.names[place.row]}” ${across ? "attended to nothing in particular" : "attends to nothing in particular"}`;
    return `“${grid.rows.names[place.row]}” ${verb} ${order.map(([x, c]) => `“${grid.columns.names[c]}” (${x.toFixed(2)})`).join(", ")}`;
  }
  if (place.column !== null && place.column < n) {
    const column = grid.rows.names.map((_, r) => [grid.cells[r * n + place.column!], r] as const).sort((a, b) => b[0] - a[0]).filter(([x]) => x >= 0.1).slice(0, 4);
    const name = `“${grid.columns.names[place.column]}”`;
    return column.length ? `${name} is attended to by ${column.map(([x, r]) => `“${grid.rows.names[r]}” (${x.toFixed(2)})`).join(", ")}` : `nothing attends to ${name}`;
  }
  if (!ribbons) return "Point at a cell, or tap it, for its weight.";
  return "The thicker a ribbon, the greater the weight. Point at a word, or tap it.";
}

/** A sentence where a map has no more to show than equal weights; its colours exaggerate what is left. */
export function evenly(grid: Grid): string {
  const n = grid.columns.names.length;
  if (n < 3 || !(evenness(grid) > 0.99)) return "";
  const known = grid.allowed.every((keys) => keys === n) ? `1/${n} = ${(1 / n).toFixed(3)}` : "one over the number of keys that its row may attend to";
  return `Nearly uniform: every weight is close to ${known}.`;
}

/** The columns that receive most, with their mean weight over the rows. */
function received(grid: Grid): { name: string; value: number }[] {
  const n = grid.columns.names.length, sums = new Float64Array(n);
  let rows = 0;
  for (let r = 0; r < grid.rows.names.length; r++) {
    if (Number.isNaN(grid.cells[r * n])) continue;
    rows++;
    for (let c = 0; c < n; c++) sums[c] += grid.cells[r * n + c];
  }
  return [...sums].map((sum, c) => ({ name: grid.columns.names[c], value: rows ? sum / rows : 0 })).sort((a, b) => b.value - a.value).slice(0, 8);
}

/** Where the part stands that is shown of a long map, and what moves it. */
function Window() {
  const page = usePage();
  const { queries, keys } = page.map.value.how;
  const grid = page.grid.value;
  const count = (side: "rows" | "columns", all: number) => (page.byWords.value && page.run.value.words?.[page.map.value[side] ?? ""]?.texts.length) || all;
  const slider = (of: string, side: "row" | "column", first: number, shown: number, all: number) => (
    <label><span class="note">{of} {first + 1}–{first + shown} of {all.toLocaleString("en")} </span>
      <input type="range" aria-label={`first of the ${of}`} disabled={all <= shown} min={0} max={all - shown} value={first} onInput={(e) => (page.middle.value = { ...page.middle.value, [side]: Number(e.currentTarget.value) + WINDOW / 2 })} />
    </label>
  );
  return (
    <div class="bar-line window">
      {slider("queries", "row", grid.top, grid.rows.names.length, count("rows", queries))}
      {slider("keys", "column", grid.left, grid.columns.names.length, count("columns", keys))}
      <button onClick={() => (page.screen.value = "long")}>the whole map</button>
    </div>
  );
}

export function Align() {
  const page = usePage();
  const grid = page.grid.value;
  const run = page.run.value;
  const map = page.map.value;
  const large = page.large.value;
  const place = within(grid, page.place.value);
  const across = map.rows !== map.columns && map.rows === "output" && map.columns === "source";
  const ofWords = !run.media || map.columns !== "source"; // cells of a picture and moments of a sound are none
  const found = useMemo(() => flags(grid, across && ofWords && !large), [grid, across, ofWords, large]);
  const onPlace = (next: Place) => (page.hover.value = next);
  const onPin = (next: Place) => {
    const same = page.pinned.value && page.pinned.value.row === next.row && page.pinned.value.column === next.column;
    page.pinned.value = same || (next.row === null && next.column === null) ? null : next;
  };
  const n = grid.columns.names.length;
  const ribbons = ofWords && grid.rows.names.length <= 80 && n <= 80;
  const row = place.row, place0 = row === null ? 0 : row + grid.top;
  const words = page.byWords.value && map.rows ? run.words?.[map.rows] : undefined;
  // all weights of the chosen row, also those beyond what is shown
  const whole = useMemo(() => (row === null ? null : large ? page.reader.value.grid(run, map, page.heads.value, page.byWords.value, [place0, 0, 1, map.how.keys]) : { cells: grid.cells.subarray(row * n, (row + 1) * n), columns: grid.columns }), [grid, row]);
  const weights = whole?.cells;
  const best = weights ? weights.reduce((most, x, c) => (x > weights[most] ? c : most), 0) : null;
  return (
    <>
      <section class="card" aria-label="ribbons">
        <header>
          <h2>{across ? "What each output word attended to" : "What attends to what"}</h2>
          <span class="grow" />
          <RunPicker />
          {!ofWords && <button onClick={() => (page.screen.value = "media")}>see it on the {run.media!.kind === "picture" ? "picture" : "recording"}</button>}
        </header>
        {large && <Window />}
        <p aria-live="polite" data-tour="sentence" class="said">{sentenceOf(grid, place, across, ribbons)}</p>
        {ribbons && <Ribbons grid={grid} place={page.place.value} onPlace={onPlace} onPin={onPin} />}
        <p class="note shown">Shown: {siteName(map.site)}, {headsName(page.heads.value, map.how.heads)}{page.why.value && (map.how.heads > 1 || run.maps.length > 1) ? `: ${page.why.value.replace(/^[^:]*: /, "")}` : ""}. {evenly(grid)}</p>
        {found.length > 0 && <ul class="flags" aria-label="what stands out">{found.slice(0, 8).map((one) => <li key={one}>{one}</li>)}</ul>}
      </section>
      <div class="two">
        <section class="card" aria-label="map" data-tour="map">
          <header><h2>{ribbons ? "The same weights as a heatmap" : "The weights as a heatmap"}</h2><span class="grow" /><Legend most={grid.largest} nan={grid.nan} /></header>
          <HeadPicker />
          <div style={{ height: "10px" }} />
          <Heatmap
            grid={grid} label={`weights of ${headsName(page.heads.value, map.how.heads)} of ${siteName(map.site)}`} rowsAre={rowsAre(map)} columnsAre={columnsAre(run, map)}
            place={page.place.value} onPlace={onPlace} onPin={onPin} margins={!large}
          />
          {!large && <p class="note">Bars to the right: how widely a row spreads (entropy). Bars below: how much a column receives.</p>}
        </section>
        <aside class="card facts" aria-label="the chosen word" data-tour="facts">
          {row !== null && whole && weights ? (
            <>
              <h3>{grid.rows.names[row]}</h3>
              {words?.log_prob && <p>Its probability: <b>{Math.exp(words.log_prob[place0]).toFixed(3)}</b>{words.log_prob[place0] < UNSURE ? ", unsure" : ""}</p>}
              {Number.isNaN(weights[0]) ? <p class="note">Its weights are NaN: one of its scores is no finite number.</p>
                : <p class="note">Spread of its attention: {entropy(weights).toFixed(2)} nats, as over {Math.exp(entropy(weights)).toFixed(1)} equal {ofWords ? (page.byWords.value && words ? "words" : "tokens") : run.media!.kind === "picture" ? "cells" : "moments"}.</p>}
              <Bars of={columnsAre(run, map)} heading="weight" most={1} bars={[...weights].map((value, c) => ({ name: whole.columns.names[c] + (large ? ` (${c + 1})` : ""), value, on: page.place.value.column === c })).sort((a, b) => b.value - a.value).slice(0, 8)} />
              {large && best !== null && within(grid, { row: null, column: best }).column === null && <button onClick={() => (page.middle.value = { ...page.middle.value, column: best })}>show “{whole.columns.names[best]}” ({best + 1})</button>}
              {run.trace && <button onClick={() => (page.screen.value = "step")}>How this was computed</button>}
            </>
          ) : (
            <>
              <h3>{run.text ?? page.document.value.title}</h3>
              {run.log_prob != null && <p class="note">log-probability {minus(run.log_prob.toFixed(2))} nats{run.score != null && run.score !== run.log_prob ? `, beam score ${minus(run.score.toFixed(2))}` : ""}</p>}
              {!words?.log_prob && <p class="note">{large ? "In this part, the" : "The"} {ofWords ? "keys" : run.media!.kind === "picture" ? "cells" : "moments"} that receive most:</p>}
              {words?.log_prob ? <Bars of="word" heading="probability" most={1} bars={grid.rows.names.map((name, i) => ({ name, value: Math.exp(words.log_prob![i + grid.top]) }))} />
                : <Bars of={columnsAre(run, map)} heading="mean weight" bars={received(grid)} />}
            </>
          )}
        </aside>
      </div>
    </>
  );
}
