// Questions to the model itself, which only a page with a server can put: before and after, side by side.
import { useMemo, useState } from "preact/hooks";
import { StateContext, usePage } from "../context";
import { columnsAre, headsName, names, Reader, readTensors, rowsAre, siteName, type Document } from "../document";
import { ask } from "../live";
import { Bars, Heatmap } from "../parts";
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
  /** Whose weights were changed; null where the input was. */
  head: number | null;
}

const MOST = 40; // names of a line of ribbons

/** The attention of one run of an answer: of the head that was changed, else of what the page shows, where it is there. */
function Attention({ source, run, head }: { source: Source; run: number; head: number | null }) {
  const page = usePage();
  const state = useMemo(() => {
    const made = createState(source, false);
    made.runIndex.value = run;
    if (made.run.value.maps.some((map) => map.site === page.map.value.site)) {
      made.site.value = page.map.value.site;
      made.head.value = head ?? page.head.value;
    }
    made.byWords.value = page.byWords.value;
    return made;
  }, [source, run, head, page.map.value, page.head.value, page.byWords.value]);
  return <StateContext.Provider value={state}><Drawn /></StateContext.Provider>;
}

function Drawn() {
  const page = usePage();
  const grid = page.grid.value, map = page.map.value;
  if (!grid) return <p class="note">The maps have more than 256 tokens: too many to be drawn here.</p>;
  const shown = { grid, place: page.place.value, onPlace: (place: Place) => { page.hover.value = place; }, onPin: (place: Place) => { page.pinned.value = place; } };
  return (
    <div>
      {Math.max(grid.rows.names.length, grid.columns.names.length) <= MOST ? <Ribbons {...shown} />
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
  const canAsk = live?.asks.includes("what-if") && run.source !== undefined;
  const put = async (change: Record<string, unknown>) => {
    setBusy(true);
    setFault("");
    try {
      const found = await ask<Answer>(live!, "what-if", { source: run.source, output: run.text, position, site: map.site, head, change });
      setAnswer({ ...found, head: change.word === undefined ? head : null, source: found.page && { document: found.page.document, reader: new Reader(await readTensors(found.page.tensors)) } });
    } catch (error) {
      setFault(String(error instanceof Error ? error.message : error));
    }
    setBusy(false);
  };
  if (!page.document.value.model) return null; // maps alone: there is no model that could be asked
  const words = (run.source ?? "").split(/\s+/).filter(Boolean);
  return (
    <section class="card" data-tour="what-if">
      <header><h2>What if?</h2><span class="note">{canAsk ? `asks ${page.document.value.model || "the model"} again` : <>a saved page has no model to ask; a served one has: <code>regard look {page.document.value.model} "text"</code></>}</span></header>
      {canAsk && (
        <>
          <div class="bar-line">
            <button disabled={busy} onClick={() => put({ kind: "uniform" })}>make {siteName(map.site)}, head {head} uniform</button>
            <button disabled={busy} onClick={() => put({ kind: "ablate" })}>ablate that head</button>
            <label><span class="note">attend only to </span>
              <select aria-label="attend only to" disabled={busy} value="" onChange={(e) => e.currentTarget.value && put({ kind: "force", key: Number(e.currentTarget.value) })}>
                <option value="">…</option>
                {names(run, map, "columns").map((name, c) => <option key={c} value={String(c)}>{name}</option>)}
              </select>
            </label>
          </div>
          <div class="bar-line" style={{ marginTop: "8px" }}>
            <label><span class="note">the word </span>
              <select aria-label="source word" value={String(word)} onChange={(e) => setWord(Number(e.currentTarget.value))}>{words.map((w, n) => <option key={n} value={String(n)}>{w}</option>)}</select>
            </label>
            <button disabled={busy || !words.length} onClick={() => put({ kind: "drop", word })}>leave it out</button>
            <input type="text" aria-label="another word" placeholder="another word" value={text} onInput={(e) => setText(e.currentTarget.value)} />
            <button disabled={busy || !text.trim() || !words.length} onClick={() => put({ kind: "replace", word, text })}>put this instead</button>
          </div>
          {busy && <p role="status">asking …</p>}
          {fault && <p role="alert" class="believe doubt">{fault}</p>}
          {answer && (
            <>
              <p class="believe" style={{ marginTop: "12px" }} aria-live="polite">{answer.sentence.replaceAll(map.site, siteName(map.site))}</p>
              <div class="pair">
                {[{ name: "before", ...answer.before }, { name: "after", text: answer.text, step: answer.step }].map(({ name, text, step }, n) => (
                  <section key={name} aria-label={name}>
                    <h2>{name}</h2>
                    <p dir="auto">{text}</p>
                    {answer.source ? <Attention source={answer.source} run={n} head={answer.head} /> : <div />}
                    <Bars of="next token here" heading="probability" most={1} bars={step.map(([token, value]) => ({ name: token, value }))} />
                  </section>
                ))}
              </div>
            </>
          )}
        </>
      )}
    </section>
  );
}
