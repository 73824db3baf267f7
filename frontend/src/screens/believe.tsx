// Whether a map may be believed: what else was measured of the same prediction, side by side.
import { useState } from "preact/hooks";
import { usePage } from "../context";
import { names, siteName, type Believe as Found, type Run } from "../document";
import { ask } from "../live";
import { Bars, number, type Bar } from "../parts";

const NAMES: Record<string, [string, string]> = {
  attention: ["attention", "the weight on each token, summed over heads and queries"],
  gradient: ["gradient × attention", "the weight times what a change of it does to the probability"],
  zeroed: ["value zeroing", "how far the log-probability falls when the token's value is taken away"],
  left_out: ["left out", "how far the log-probability falls when the token is taken out of the input"],
};

/** The sentence, with the site in words. */
const plain = (found: Found): string => found.sentence.replaceAll(found.site, siteName(found.site));

/** What may be said of the map: the weights may not rank the tokens although it matters where they are. */
const verdict = (found: Found): string =>
  found.holds ? "may be believed for this output" : found.matters ? "does not show what this output needs most" : "explains little of this output";

/** What the verdict rests on: both tests passed, or the one that failed. */
export function reason(found: Pick<Found, "holds" | "matters" | "change" | "agreement">): string {
  const change = `changes its log-probability by ${number(found.change, 2)} nats`;
  const agreement = `(rank correlation ${number(found.agreement, 2)})`;
  if (found.holds) return `shuffling its weights ${change}, and the greatest weights are on the tokens that the output needs most ${agreement}`;
  if (found.matters) return `where it attends matters (shuffling its weights ${change}), but its weights do not rank the tokens by how much the output needs them ${agreement}`;
  return `shuffling its weights ${change}, little beside taking a token's value away`;
}

/** What was read is tokens, or parts of a picture or a sound. */
const inWords = (run: Run, text: string) => (run.media ? text.replaceAll("token", "part") : text);

/** The sentence that stands on every other view; on this one the verdict itself does. */
export function BelieveLine() {
  const page = usePage();
  const { found, testing } = page.believe.value;
  const elsewhere = found && found.site !== page.map.value.site;
  return (
    <p class={`believe line${found && !elsewhere && !found.holds ? " doubt" : ""}`} data-tour="believe">
      <span>
        <b>Believe it? </b>
        {found && !elsewhere ? (
          <span title={plain(found)}>
            This map {verdict(found)}<span class="more">: {inWords(page.run.value, reason(found))}</span>.
          </span>
        ) : testing === page.map.value.site ? "This map is being tested against the output …" : `This map was not tested against the output: ${page.run.value.untested ?? "attention alone is no explanation"}.`}
      </span>
      {(page.document.value.live || found) && <button onClick={() => (page.screen.value = "believe")}>details</button>}
    </p>
  );
}

const MOST = 40; // numbers of a measure

/** All of them, or those that are largest, in their order. */
function largest(bars: Bar[]): Bar[] {
  if (bars.length <= MOST) return bars;
  const least = bars.map(({ value }) => Math.abs(value)).sort((a, b) => b - a)[MOST - 1];
  return bars.filter(({ value }) => Math.abs(value) >= least).slice(0, MOST);
}

export function Believe() {
  const page = usePage();
  const run = page.run.value;
  const live = page.document.value.live;
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const [chosen, setChosen] = useState<{ run: Run; found: Found } | null>(null);
  const own = page.believe.value;
  const found = chosen?.run === run ? chosen.found : own.found; // of another text it says nothing
  const tested = run.maps.find(({ site }) => site === found?.site);
  const keys = run.media && tested ? names(run, tested, "columns") : found?.columns ?? [];
  const output = run.sequences.output ?? [];
  const test = async (position: number | null) => {
    setBusy(true);
    setFault("");
    try {
      setChosen({ run, found: await ask<Found>(live!, "believe", { source: run.source, output: run.text, site: page.map.value.site, position }) });
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
    setBusy(false);
  };
  return (
    <>
      <section class="card" data-tour="verdict">
        <header><h2>May this map be believed?</h2>{found && <span class="note">tested at {siteName(found.site)}{found.step ? `, for ${found.step}` : ""}</span>}</header>
        {found ? <p class={`believe verdict${found.holds ? "" : " doubt"}`}>{plain(found)}</p> : own.testing ? <p role="status">{siteName(own.testing)} is being tested …</p> : own.fault ? <p>The test failed: {own.fault}.</p> : <p>No test was run for this run{run.untested && `: ${run.untested}`}. {live ? (run.made?.own === false || run.made?.number ? `${page.document.value.model} is asked about its first output: choose that run on Align.` : "Run one below.") : <>A page of a translator or a language model has one: <code>regard look MODEL "text" --save page.html</code></>}</p>}
        {found && found.site !== page.map.value.site && <p class="note">The other views show {siteName(page.map.value.site)}, which was not tested.</p>}
        {live?.asks.includes("believe") && run.source !== undefined && run.made?.own !== false && !run.made?.number && (
          <div class="bar-line" style={{ marginTop: "10px" }}>
            <button disabled={busy} onClick={() => test(null)}>test {siteName(page.map.value.site)} for the whole output</button>
            <label><span class="note">or for one token </span><select aria-label="token to test" disabled={busy} value="" onChange={(e) => e.currentTarget.value && test(Number(e.currentTarget.value))}><option value="">…</option>{output.map((t, n) => <option key={n} value={String(n)}>{t}</option>)}</select></label>
            {busy && <span role="status">testing …</span>}
          </div>
        )}
        {fault && <p role="alert" class="believe doubt">{fault}</p>}
      </section>
      {found && (
        <div class="trio">
          {Object.entries(found.measures).map(([name, values]) => (
            <section class="card" key={name}>
              <header><h2>{NAMES[name]?.[0] ?? name}</h2></header>
              <p class="note">{inWords(run, NAMES[name]?.[1] ?? "")}{values.length > MOST && `; the ${MOST} largest of ${values.length}`}</p>
              <Bars of={inWords(run, "token")} heading={name === "attention" ? "weight" : "nats"} bars={largest(values.map((value, n) => ({ name: keys[n] ?? String(n), value, shown: number(value, 3) })))} />
            </section>
          ))}
        </div>
      )}
      <section class="card">
        <p class="note">
          High weight is not importance: weights can often be shuffled without changing the answer (Jain and Wallace 2019), whether that matters depends on the question
          (Wiegreffe and Pinter 2019), and a state deep in a model is no longer the word that stands there (Brunner et al. 2020). So the output itself is asked.
        </p>
      </section>
    </>
  );
}
