// Questions to the model itself, which only a page with a server can put: before and after, side by side.
import { useMemo, useState } from "preact/hooks";
import { StateContext, usePage } from "../context";
import { columnsAre, headsName, names, Reader, readTensors, rowsAre, siteName, type Document, type Grid, type Run } from "../document";
import { ask } from "../live";
import { Bars, Heatmap, toldApart } from "../parts";
import { Ribbons } from "../ribbons";
import { createState, type Place, type Source } from "../state";

export interface Answer {
  text: string;
  step: [string, number][];
  before: { text: string; step: [string, number][] };
  sentence: string;
  /** The attention before and after, as the two runs of a page; null where there are no maps of whole outputs. */
  page: { document: Document; tensors: string } | null;
}

interface Shown extends Answer {
  source: Source | null;
  /** What was asked about: of another text the answer says nothing. */
  run: Run;
  site: string;
  /** Whose weights were changed; null where the input was. */
  head: number | null;
}

const PARTS = [["weights", "weights"], ["query", "queries"], ["key", "keys"], ["value", "values"]];
const MOST = 40; // names of a line of ribbons

const few = ({ rows, columns }: Grid): boolean => Math.max(rows.names.length, columns.names.length) <= MOST;

/** Before and after, side by side, drawn in one way: the head that was changed, else what the page shows, where it is there. */
function Pair({ answer }: { answer: Shown }) {
  const page = usePage();
  const { source, head } = answer;
  const wanted = head === null ? page.map.value.site : answer.site;
  const states = useMemo(() => source && source.document.runs.map((_, run) => {
    const made = createState(source, false);
    made.runIndex.value = run;
    made.theme.value = page.dark.value ? "dark" : "light";
    if (made.run.value.maps.some((map) => map.site === wanted)) {
      made.site.value = wanted;
      made.head.value = head ?? page.head.value;
    }
    made.byWords.value = page.byWords.value;
    made.middle.value = page.middle.value;
    return made;
  }), [source, head, wanted, page.head.value, page.byWords.value, page.middle.value, page.dark.value]);
  const ribbons = !!states?.every(({ grid }) => few(grid.value));
  return (
    <div class="pair">
      {[{ name: "before", ...answer.before }, { name: "after", text: answer.text, step: answer.step }].map(({ name, text, step }, n) => (
        <section key={name} aria-label={name}>
          <h2>{name}</h2>
          <p dir="auto">{text}</p>
          {states ? <StateContext.Provider value={states[n]}><Drawn ribbons={ribbons} /></StateContext.Provider> : <div />}
          <Bars of="next token here" heading="probability" most={1} bars={step.map(([token, value]) => ({ name: token, value }))} />
        </section>
      ))}
    </div>
  );
}

function Drawn({ ribbons }: { ribbons: boolean }) {
  const page = usePage();
  const grid = page.grid.value, map = page.map.value;
  const shown = { grid, place: page.place.value, onPlace: (place: Place) => { page.hover.value = place; }, onPin: (place: Place) => { page.pinned.value = place; } };
  return (
    <div>
      {ribbons ? <Ribbons {...shown} />
        : <Heatmap {...shown} label={`weights of ${headsName(page.heads.value, map.how.heads)} of ${siteName(map.site)}`} rowsAre={rowsAre(map)} columnsAre={columnsAre(page.run.value, map)} />}
      <p class="note shown">{siteName(map.site)}, {headsName(page.heads.value, map.how.heads)}{grid.largest ? "" : ": every weight is 0"}</p>
    </div>
  );
}

export function WhatIf({ position }: { position: number }) {
  const page = usePage();
  const live = page.document.value.live;
  const run = page.run.value;
  const map = page.map.value;
  const head = page.heads.value[0];
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState<Shown | null>(null);
  const [fault, setFault] = useState("");
  const [word, setWord] = useState(0);
  const [text, setText] = useState("");
  const [sentence, setSentence] = useState("");
  const [part, setPart] = useState("weights");
  const { own = true, number = 0 } = run.made ?? {};
  const served = live?.asks.includes("what-if") && run.source !== undefined;
  const canAsk = served && own && !number;
  const put = async (change: Record<string, unknown>) => {
    setBusy(true);
    setFault("");
    try {
      const found = await ask<Answer>(live!, "what-if", { source: run.source, output: run.text, position, site: map.site, head, change });
      setAnswer({ ...found, run, site: map.site, head: change.word === undefined ? head : null, source: found.page && { document: found.page.document, reader: new Reader(await readTensors(found.page.tensors)) } });
    } catch (error) {
      setFault(String(error instanceof Error ? error.message : error));
    }
    setBusy(false);
  };
  const { model, task } = page.document.value;
  if (!model || (task !== "translate" && task !== "complete")) return null; // maps alone, or a model that no server asks
  const words = (run.source ?? "").split(/\s+/).filter(Boolean);
  const at = Math.min(word, Math.max(0, words.length - 1)); // another text may be shorter
  return (
    <section class="card" data-tour="what-if">
      <header><h2>What if?</h2><span class="note">{canAsk ? `asks ${model} again` : served ? `asks ${model} for its first output: choose that run on Align` : <>a saved page has no model to ask, nor to patch from another sentence; a served one has: <code>regard look {model} "text"</code></>}</span></header>
      {canAsk && (
        <>
          <div class="bar-line">
            <button disabled={busy} onClick={() => put({ kind: "uniform" })}>make {siteName(map.site)}{map.how.heads > 1 ? `, head ${head}` : ""} uniform</button>
            <button disabled={busy} onClick={() => put({ kind: "ablate" })}>ablate that head</button>
            <label><span class="note">attend only to </span>
              <select aria-label="attend only to" disabled={busy} value="" onChange={(e) => e.currentTarget.value && put({ kind: "force", key: Number(e.currentTarget.value) })}>
                <option value="">…</option>
                {toldApart(names(run, map, "columns")).map((name, c) => <option key={c} value={String(c)}>{name}</option>)}
              </select>
            </label>
          </div>
          <div class="bar-line" style={{ marginTop: "8px" }}>
            <label><span class="note">the word </span>
              <select aria-label="source word" value={String(at)} onChange={(e) => setWord(Number(e.currentTarget.value))}>{words.map((w, n) => <option key={n} value={String(n)}>{w}</option>)}</select>
            </label>
            <button disabled={busy || !words.length} onClick={() => put({ kind: "drop", word: at })}>leave it out</button>
            <input type="text" aria-label="another word" placeholder="another word" value={text} onInput={(e) => setText(e.currentTarget.value)} />
            <button disabled={busy || !text.trim() || !words.length} onClick={() => put({ kind: "replace", word: at, text })}>put this instead</button>
          </div>
          <form class="bar-line" style={{ marginTop: "8px" }} onSubmit={(e) => { e.preventDefault(); void put({ kind: "patch", part, text: sentence }); }}>
            <label><span class="note">{map.how.heads > 1 ? `the head's ` : "its "}</span>
              <select aria-label="part to patch" value={part} onChange={(e) => setPart(e.currentTarget.value)}>{PARTS.map(([value, name]) => <option key={value} value={value}>{name}</option>)}</select>
            </label>
            <input type="text" aria-label="another sentence" placeholder="from another sentence" value={sentence} onInput={(e) => setSentence(e.currentTarget.value)} />
            <button disabled={busy || !sentence.trim()}>patch</button>
            <span class="note">a sentence of as many tokens; the output is kept</span>
          </form>
          {busy && <p role="status">asking …</p>}
          {fault && <p role="alert" class="believe doubt">{fault}</p>}
          {answer?.run === run && (
            <>
              <p class="believe" style={{ marginTop: "12px" }} aria-live="polite">{answer.sentence.replaceAll(answer.site, siteName(answer.site))}</p>
              <Pair answer={answer} />
            </>
          )}
        </>
      )}
    </section>
  );
}
