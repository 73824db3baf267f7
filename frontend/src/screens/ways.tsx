// A word's way through the layers of an encoder: where its vector goes in each text, towards which words, and what moved it.
import { useState } from "preact/hooks";
import { usePage } from "../context";
import { series } from "../colour";
import { type Way } from "../document";
import { Bars, minus, RunPicker, Scrolled } from "../parts";

const WIDE = 460, HIGH = 340, EDGE = 22; // of the plane

/** Places in the picture, the second direction upwards. */
export function placed(paths: number[][][]): [number, number][][] {
  const all = paths.flat();
  const [least, most] = [Math.min, Math.max].map((of) => [0, 1].map((d) => of(...all.map((point) => point[d]))));
  const at = (x: number, d: number, size: number) => EDGE + ((size - 2 * EDGE) * (x - least[d])) / (most[d] - least[d] || 1);
  return paths.map((path) => path.map(([x, y]) => [at(x, 0, WIDE), HIGH - at(y, 1, HIGH)]));
}

/** At first the longest of the words that stand in the most texts. */
function first(ways: Way[]): Way {
  return ways.reduce((a, b) => (b.runs.length > a.runs.length || (b.runs.length === a.runs.length && b.word.length > a.word.length) ? b : a));
}

const percent = (share: number) => `${Math.round(100 * share)} %`;
const list = (pairs: [string, number][]) => pairs.map(([word, value]) => `${word} (${minus(value.toFixed(2))})`).join(", ");

export function Ways() {
  const page = usePage();
  const [chosen, setChosen] = useState("");
  const ways = (page.document.value.ways ?? []).filter(({ runs }) => runs.includes(page.runIndex.value));
  if (!ways.length) return null;
  const way = ways.find(({ word }) => word === chosen) ?? first(ways);
  const colours = series(page.dark.value);
  const lines = placed(way.paths);
  const runs = page.document.value.runs;
  const last = way.paths[0].length - 1;
  return (
    <>
      <section class="card">
        <header>
          <h2>“{way.word}” through the layers</h2>
          <span class="note">its vector before the first layer (ring) and after each, in the plane in which these differ most</span>
        </header>
        <div class="bar-line" style={{ marginBottom: "10px" }}>
          <RunPicker />
          <label><span class="note">word </span><select aria-label="word" value={way.word} onChange={(e) => setChosen(e.currentTarget.value)}>{ways.map(({ word }) => <option key={word} value={word}>{word}</option>)}</select></label>
        </div>
        <svg class="way" viewBox={`0 0 ${WIDE} ${HIGH}`} role="img" aria-label={`the way of “${way.word}” in ${way.runs.length === 1 ? "one text" : `${way.runs.length} texts`}, layers 0 to ${last}`}>
          {lines.map((line, n) => {
            const ink = colours[n % colours.length], [x, y] = line[0], [u, v] = line[last];
            return (
              <g key={n}>
                <polyline points={line.map((p) => p.join()).join(" ")} fill="none" stroke={ink} stroke-width="1.8" />
                {line.slice(1).map(([a, b], layer) => <circle key={layer} cx={a} cy={b} r="3.6" fill={ink}><title>{`text ${n + 1}, layer ${layer + 1}`}</title></circle>)}
                <circle cx={x} cy={y} r="5" fill="var(--card)" stroke={ink} stroke-width="1.8" />
                <text x={u + (u > WIDE / 2 ? -10 - 12 * n : 8 + 12 * n)} y={v + (v < HIGH / 2 ? 14 : -7)} fill="var(--ink)">{n + 1}</text>
              </g>
            );
          })}
        </svg>
        <p class="note">across: {percent(way.explained[0])} of the variance; upwards: {percent(way.explained[1])}. On its own, in layer {way.layer}, the word is nearest to {list(way.before)}.</p>
        {page.document.value.model === "english" && <p class="note">english is a small model: its vectors tell where a word stands in a sentence rather than what it means.</p>}
      </section>
      <div class="trio">
        {way.runs.map((run, n) => (
          <section key={run} class="card" aria-label={`text ${n + 1}`}>
            <header><h2><i class="swatch" style={{ background: colours[n % colours.length] }} />{n + 1}: <span dir="auto">{runs[run]?.source}</span></h2></header>
            <p class="note">nearest words in layer {way.layer}: {list(way.after[n])}</p>
            <p class="note">moved towards: {list(way.towards[n])}</p>
            {way.moved_by[n].length > 0 && <Bars of="moved by" heading="1 − cosine without it" bars={way.moved_by[n].map(([name, value]) => ({ name, value }))} />}
          </section>
        ))}
      </div>
      {way.runs.length > 1 && (
        <section class="card">
          <header><h2>How alike the texts make it</h2><span class="note">cosines of its vectors, in units of the spread of all words</span></header>
          <Scrolled label="cosines by layer"><table>
            <thead><tr><th scope="col">texts</th>{way.cosines.map((_, layer) => <th key={layer} scope="col" class="number">layer {layer}</th>)}</tr></thead>
            <tbody>{way.runs.flatMap((_, a) => way.runs.slice(a + 1).map((_, at) => { const b = a + 1 + at; return <tr key={`${a}-${b}`}><th scope="row">{a + 1} and {b + 1}</th>{way.cosines.map((layer, l) => <td key={l} class="number">{minus(layer[a][b].toFixed(2))}</td>)}</tr>; }))}</tbody>
          </table></Scrolled>
        </section>
      )}
    </>
  );
}
