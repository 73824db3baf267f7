// One weight, from the model down to the arithmetic: model, head, row, weight.
import { useCallback, useRef, useState } from "preact/hooks";
import { usePage } from "../context";
import { type Head } from "../attention";
import { columnsAre, headName, headsName, names, rowsAre, siteName, type MapInfo } from "../document";
import { Bars, firstOf, Heatmap, Legend, number, Scrolled, share, spaces, useEvery, visible } from "../parts";
import { WINDOW, type Zoom } from "../state";
import { WhatIf } from "./what-if";

export function Step() {
  const page = usePage();
  const run = page.run.value;
  const map = page.map.value;
  const rows = names(run, map, "rows").map(visible);
  const columns = names(run, map, "columns").map(visible);
  const zoom = page.zoom.value, setZoom = (next: Zoom) => (page.zoom.value = next);
  const [playing, setPlaying] = useState(false);
  const head = page.heads.value[0];
  const one = page.reader.value.head(map, head);
  const [chosen, setChosen] = useState(() => firstToken(page));
  const [key, setKey] = useState<number | null>(null);
  const i = Math.min(chosen, rows.length - 1);
  const weights = one.row(i);
  const best = weights.reduce((top, x, j) => (x > weights[top] ? j : top), 0);
  const j = key === null || key >= columns.length ? best : key;
  const scores = Array.from(weights, (_, c) => one.score(i, c));
  const open = columns.map((_, c) => c).filter((c) => scores[c] !== -Infinity);
  const masked = columns.length - open.length;
  const shown = open.length <= 40 ? open : [...open].sort((a, b) => weights[b] - weights[a] || 0).slice(0, 40).sort((a, b) => a - b);
  // the part of a long map that the head's view shows: it stays where it is while it is pointed at
  const corner = useRef<[number, number]>([0, 0]);
  if ([i, j].some((n, side) => n < corner.current[side] || n >= corner.current[side] + WINDOW)) {
    corner.current = [[i, rows], [j, columns]].map(([n, names]) => Math.max(0, Math.min((n as number) - WINDOW / 2, (names as string[]).length - WINDOW))) as [number, number];
  }
  const computed = !!one.query;
  const context = one.value && one.context(i), sign = signOf(one);
  const step = run.trace && map.rows === "output" ? run.trace[i] : undefined;
  const predicted = run.lens?.rows === map.rows ? run.lens!.top.at(-1)![i] : undefined;
  useEvery(1100, playing, useCallback(() => setChosen((now) => (now + 1) % rows.length), [rows.length]));
  const crumbs: [Zoom, string][] = [
    ["model", "1 model"], ["head", `2 head: ${siteName(map.site)}, ${headName(head, map.how.heads)}`], ["row", `3 query: “${rows[i]}”`], ["weight", `4 weight: “${rows[i]}” → “${columns[j]}”`],
  ];
  return (
    <>
      <section class="card" data-tour="zooms">
        <header><h2>How one weight is computed</h2><span class="note">four levels of zoom; every number is computed from the model's tensors{spaces([...rows, ...columns])}</span></header>
        <nav class="crumbs" aria-label="zoom">
          {crumbs.map(([name, text]) => <button key={name} aria-pressed={zoom === name} onClick={() => setZoom(name)}>{text}</button>)}
          <span class="grow" />
          <button onClick={() => setChosen(Math.max(0, i - 1))} aria-label="previous position">◀</button>
          <button aria-pressed={playing} onClick={() => setPlaying(!playing)}>{playing ? "stop" : "play"}</button>
          <button onClick={() => setChosen(Math.min(rows.length - 1, i + 1))} aria-label="next position">▶</button>
          <span class="note">{i + 1} of {rows.length}</span>
        </nav>
      </section>
      {zoom === "model" && (
        <section class="card">
          <p class="note">The attention layers of this model. Choose one to zoom into it.</p>
          <div style={{ display: "grid", gap: "10px", marginTop: "10px" }}>
            {stacks(run.maps.map((m) => m.site)).map(([stack, sites]) => (
              <div key={stack} class="chips" style={{ alignItems: "center" }}>
                <b style={{ minWidth: "92px" }}>{stack}</b>
                {sites.map((site) => (
                  <button key={site} aria-pressed={site === map.site} onClick={() => { page.site.value = site; page.head.value = 0; setZoom("head"); }}>{siteName(site)}</button>
                ))}
              </div>
            ))}
          </div>
        </section>
      )}
      {zoom === "head" && (
        <section class="card">
          <header><h2>{siteName(map.site)}, {headName(head, map.how.heads)}</h2><span class="grow" /><Legend most={1} /></header>
          {map.how.heads > 1 && <div class="chips" style={{ marginBottom: "10px" }}>
            {page.all.value.map((h) => <button key={h} aria-pressed={h === head} onClick={() => (page.head.value = h)}>head {h}</button>)}
          </div>}
          {page.large.value && <p class="note">The {WINDOW} × {WINDOW} weights around the chosen one; the long view has all.</p>}
          <Heatmap grid={page.reader.value.grid(run, map, [head], false, page.large.value ? [...corner.current, WINDOW, WINDOW] : undefined)} most={1} label="weights of this head" rowsAre={rowsAre(map)} columnsAre={columnsAre(run, map)}
              place={{ row: i, column: j }} onPlace={(p) => { if (p.row !== null) setChosen(p.row); if (p.column !== null) setKey(p.column); }} onPin={(p) => { if (p.row === null) return; setChosen(p.row); setKey(p.column); setZoom("weight"); }} />
        </section>
      )}
      {zoom === "row" && (
        <div class="two">
          <section class="card">
            <header><h2>The query “{rows[i]}” scores every key</h2><span class="note">{headsName([head], map.how.heads)} of {siteName(map.site)}{firstOf(page.heads.value)}</span></header>
            {computed && <p class="equation">{equation(map.how.score, map.how.softcap)} → {map.how.normalizer === "softmax" || !map.how.normalizer ? "α = exp(e) / Σ exp(e)" : `α = ${map.how.normalizer}(e)`}{context && ` → c = Σ α ${sign}`}</p>}
            <Scrolled label="the weights of the row"><table class="wide">
              <thead><tr><th style={{ textAlign: "left" }}>key</th>{computed && <th>score e</th>}<th>weight α</th><th><span class="hidden">as a bar</span></th>{context && <><th>‖{sign}‖</th><th>‖α {sign}‖</th>{FIRST.map((d) => d < one.depth && <th key={d}>{d || `α ${sign}: 0`}</th>)}</>}</tr></thead>
              <tbody>
                {shown.map((c) => (
                  <tr key={c}>
                    <td style={{ textAlign: "left" }}><button style={{ minHeight: "26px", padding: "1px 9px" }} aria-pressed={c === j} onClick={() => { setKey(c); setZoom("weight"); }}>{columns[c]}</button></td>
                    {computed && <td>{number(scores[c], 2)}</td>}
                    <td>{share(weights[c])}</td>
                    <td style={{ width: context ? "25%" : "60%", minWidth: "40px" }}><i style={{ display: "block", height: "10px", background: "var(--accent)", width: `${100 * (weights[c] || 0)}%` }} /></td>
                    {context && <><td>{number(norm(valueOf(one, c)), 2)}</td><Vector of={valueOf(one, c).map((x) => weights[c] && weights[c] * x)} /></>}
                  </tr>
                ))}
                {context && <tr class="sum-of"><td colSpan={computed ? 5 : 4}>context c = Σ α {sign}</td><Vector of={context} /></tr>}
              </tbody>
            </table></Scrolled>
            {shown.length < columns.length && <p class="note">{masked ? `${masked} key${masked > 1 ? "s are" : " is"} masked` : ""}{masked && open.length > shown.length ? "; " : ""}{open.length > shown.length ? `the ${shown.length} largest of ${open.length} weights` : ""}.</p>}
            <p class="note">{!context ? unvalued(map) : sign === "h" && ANNOTATION}</p>
          </section>
          <aside class="card facts">
            {step ? (
              <>
                <h3>next token: “{step.token}”</h3>
                <p class="note">after “{step.previous}”{step.context_norm ? `; norm of the context vector ${number(step.context_norm, 2)}` : ""}</p>
                <Bars of="next token" heading="probability" most={1} bars={step.predictions.map((p) => ({ name: p.token, value: p.probability, on: p.token === step.token }))} />
                {step.predictions.some((p) => p.from_state !== null) && (
                  <Scrolled label="where the logits come from"><table>
                    <thead><tr><th>logit</th><th>state</th><th>context</th><th>bias</th><th>sum</th></tr></thead>
                    <tbody>{step.predictions.map((p) => <tr key={p.token}><td style={{ textAlign: "left" }}>{p.token}</td><td>{number(p.from_state!, 2)}</td><td>{number(p.from_context!, 2)}</td><td>{number(p.bias!, 2)}</td><td>{number(p.logit, 2)}</td></tr>)}</tbody>
                  </table></Scrolled>
                )}
              </>
            ) : predicted ? <><h3>“{rows[i]}”</h3><p class="note">what the model predicts here, after its last layer</p><Bars of="token" heading="probability" most={1} bars={predicted.map(([name, value]) => ({ name, value }))} /></>
              : <p class="note">The output of this head at this position is the sum of the keys' values, each times its weight.</p>}
          </aside>
        </div>
      )}
      {zoom === "weight" && <Weight i={i} j={j} />}
      <WhatIf position={i} />
    </>
  );
}

const FIRST = [0, 1, 2, 3]; // coordinates of a row's values
const norm = (x: ArrayLike<number>): number => Math.hypot(...Array.from(x));
const valueOf = (one: Head, j: number): Float32Array => one.value!.subarray(j * one.depth, (j + 1) * one.depth) as Float32Array;

/** The letter of a value: v, where it is not the vector of an additive score. */
const signOf = (one: Head): string => (one.v ? "h" : "v");
const ANNOTATION = "h is what a key's weight is given to: its value, in a recurrent model the encoder's state there.";

/** Cells of a vector: its norm, then its first coordinates. */
function Vector({ of }: { of: ArrayLike<number> }) {
  return <><td>{number(norm(of))}</td>{FIRST.map((d) => d < of.length && <td key={d}>{number(of[d])}</td>)}</>;
}

/** Why there are no values. */
const unvalued = (map: MapInfo): string => (map.values === false ? "Its values are not in this page, which they would make too large: look at a shorter text for c = Σ α v."
  : "The values were not recorded with this map; c = Σ α v is the sum of each times its weight.");

function firstToken(page: ReturnType<typeof usePage>): number {
  const row = page.pinned.value?.row;
  if (row == null) return 0;
  const map = page.map.value;
  const words = page.byWords.value && map.rows ? page.run.value.words?.[map.rows] : undefined;
  return words ? Math.max(0, words.owner.indexOf(row)) : row;
}

function stacks(sites: string[]): [string, string[]][] {
  const found = new Map<string, string[]>();
  for (const site of sites) {
    const stack = site.includes(".") ? site.split(".")[0] : site;
    found.set(stack, [...(found.get(stack) ?? []), site]);
  }
  return [...found];
}

function equation(score?: string, softcap?: number | null): string {
  if (score === "additive") return "e = v · tanh(q + k)";
  if (score === "distance") return "e = −‖q − k‖² / 2w²";
  return softcap ? `e = ${softcap} tanh(q·k / ${softcap})` : "e = q · k (the scale is part of q)";
}

function Weight({ i, j }: { i: number; j: number }) {
  const page = usePage();
  const map = page.map.value;
  const run = page.run.value;
  const head = page.heads.value[0];
  const one = page.reader.value.head(map, head);
  const row = visible(names(run, map, "rows")[i]);
  const column = visible(names(run, map, "columns")[j]);
  const weight = one.row(i)[j];
  const outcome = one.value ? <Outcome one={one} i={i} j={j} /> : <p class="note">{unvalued(map)}</p>;
  if (!one.query || !one.key) {
    return <section class="card"><p>α = <b>{share(weight)}</b>. This page was given the weights of this attention alone; its queries and keys are not in it.</p>{outcome}</section>;
  }
  const width = one.width;
  const q = one.query.subarray(i * width, (i + 1) * width);
  const k = one.key.subarray(j * width, (j + 1) * width);
  const { score } = map.how, { v } = one;
  const [term, name] = score === "additive" ? [(d: number) => v![d] * Math.tanh(q[d] + k[d]), "v × tanh(q + k)"]
    : score === "distance" ? [(d: number) => (q[d] - k[d]) ** 2, "(q − k)²"] : [(d: number) => q[d] * k[d], "q × k"];
  const terms = Array.from(q, (_, d) => [d, term(d)] as [number, number]);
  const shown = [...terms].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 8);
  const sum = terms.reduce((sum, t) => sum + t[1], 0);
  const rest = sum - shown.reduce((sum, t) => sum + t[1], 0);
  const product = one.product(i, j);
  const bias = one.biasOf(i, j);
  const scores = Array.from({ length: one.keys }, (_, c) => one.score(i, c));
  const most = Math.max(...scores);
  const total = scores.reduce((sum, e) => sum + Math.exp(e - most), 0);
  const softmax = !map.how.normalizer || map.how.normalizer === "softmax";
  return (
    <section class="card">
      <header><h2>“{row}” → “{column}”: α = {share(weight)}</h2><span class="note">{headsName([head], map.how.heads)} of {siteName(map.site)}</span></header>
      <Scrolled label="the terms of single coordinates"><table>
        <thead><tr><th>coordinate</th>{shown.map(([d]) => <th key={d}>{d}</th>)}{width > shown.length && <th>the other {width - shown.length}</th>}<th>sum</th></tr></thead>
        <tbody>
          {([["q", q], ["k", k], ...(score === "additive" ? [["v", v!]] : [])] as [string, ArrayLike<number>][]).map(([of, values]) => (
            <tr key={of}><td>{of}</td>{shown.map(([d]) => <td key={d}>{number(values[d], 2)}</td>)}{width > shown.length && <td />}<td /></tr>
          ))}
          <tr><td>{name}</td>{shown.map(([d, z]) => <td key={d}>{number(z, 2)}</td>)}{width > shown.length && <td>{number(rest, 2)}</td>}<td><b>{number(sum)}</b></td></tr>
        </tbody>
      </table></Scrolled>
      <p class="equation">
        {[
          `${equation(map.how.score, map.how.softcap).split(" (")[0]} = ${number(product)}`,
          bias ? `  + bias ${number(bias)}` : "",
          one.allowed(i, j) ? "" : "  the mask forbids it: −∞",
          softmax && one.allowed(i, j) ? `\nα = exp(${number(product + bias)}) / Σ exp(e) = ${number(Math.exp(product + bias - most))} / ${number(total)} = ${share(weight)}   (both divided by exp(${number(most)}))` : `\nα = ${share(weight)}`,
        ].join("")}
      </p>
      <p class="note">A softmax compares: the same score among greater ones would get less.</p>
      {outcome}
    </section>
  );
}

/** What a weight does: it is given to the key's value, and with those of all keys is the context. */
function Outcome({ one, i, j }: { one: Head; i: number; j: number }) {
  const v = valueOf(one, j), weight = one.row(i)[j], sign = signOf(one);
  const shown = Array.from({ length: Math.min(8, one.depth) }, (_, d) => d);
  return (
    <Scrolled label="the value and the context"><table>
      <thead><tr><th>coordinate</th>{shown.map((d) => <th key={d}>{d}</th>)}<th>norm of all {one.depth}</th></tr></thead>
      <tbody>
        {([[sign, v], [`α × ${sign}`, v.map((x) => weight && weight * x)], [`c = Σ α ${sign}`, one.context(i)]] as [string, ArrayLike<number>][]).map(([of, x]) => (
          <tr key={of}><td>{of}</td>{shown.map((d) => <td key={d}>{number(x[d])}</td>)}<td><b>{number(norm(x))}</b></td></tr>
        ))}
      </tbody>
    </table></Scrolled>
  );
}
