// Questions to the model itself, which only a page with a server can put: before and after, side by side.
import { useState } from "preact/hooks";
import { usePage } from "../context";
import { names, siteName } from "../document";
import { ask } from "../live";
import { Bars } from "../parts";

export interface Answer {
  text: string;
  step: [string, number][];
  before: { text: string; step: [string, number][] };
  sentence: string;
}

export function WhatIf({ position }: { position: number }) {
  const page = usePage();
  const live = page.document.value.live;
  const run = page.run.value;
  const map = page.map.value;
  const head = page.heads.value[0];
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [fault, setFault] = useState("");
  const [word, setWord] = useState(0);
  const [text, setText] = useState("");
  const canAsk = live?.asks.includes("what-if") && run.source !== undefined;
  const put = async (change: Record<string, unknown>) => {
    setBusy(true);
    setFault("");
    try {
      setAnswer(await ask<Answer>(live!, "what-if", { source: run.source, output: run.text, position, site: map.site, head, change }));
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
            <div class="trio" style={{ marginTop: "12px" }} aria-live="polite">
              <div><h2>before</h2><p dir="auto">{answer.before.text}</p><Bars of="next token here" heading="probability" most={1} bars={answer.before.step.map(([name, value]) => ({ name, value }))} /></div>
              <div><h2>after</h2><p dir="auto">{answer.text}</p><Bars of="next token here" heading="probability" most={1} bars={answer.step.map(([name, value]) => ({ name, value }))} /></div>
              <p>{answer.sentence}</p>
            </div>
          )}
        </>
      )}
    </section>
  );
}
