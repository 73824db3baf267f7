// A tour on the visitor's own sentence: the notes' story, one thing at a time.
import { useLayoutEffect, useRef } from "preact/hooks";
import { usePage } from "./context";
import { headsName, siteName } from "./document";
import type { Screen, State } from "./state";

interface Stop {
  screen: Screen;
  at: string;
  title: string;
  text: (page: State) => string;
  before?: (page: State) => void;
}

const second = (page: State) => page.grid.value.top + Math.min(1, page.grid.value.rows.names.length - 1);
const whole = (page: State) => { page.site.value = ""; page.head.value = "chosen"; page.pinned.value = null; };
const heads = (page: State) => page.run.value.maps.reduce((n, m) => n + m.how.heads, 0);
/** What rows and columns are, in the words of the task. */
const across = (page: State) => page.map.value.rows !== page.map.value.columns && page.map.value.columns === "source";
const scores = (page: State) => !!page.reader.value.head(page.map.value, 0).query;

const STOPS: Stop[] = [
  { screen: "media", at: "media", title: "What was read, and what was written", before: whole, text: (p) => (p.run.value.media?.kind === "picture" ? `The caption is “${p.run.value.text}”. For every word, the parts of the picture that it attended to stay bright.` : `The transcript is “${p.run.value.text}”. Below the spectrogram each word has a line, ${p.dark.value ? "bright" : "dark"} where its weight is greatest.`) },
  { screen: "align", at: "ribbons", title: "One sentence, two lines", before: whole, text: (p) => (across(p) && p.run.value.text ? `One line is what the model read, the other is what it wrote: “${p.run.value.text}”. A ribbon joins an output word to the source words it attended to.` : "One line has the keys, the other the queries. A ribbon joins a query to the keys it attends to.") },
  { screen: "align", at: "sentence", title: "One word at a time", before: (p) => (p.pinned.value = { row: second(p), column: null }), text: (p) => {
    const word = p.grid.value.rows.names[second(p) - p.grid.value.top] ?? "";
    return p.document.value.task === "translate" ? `A translator without attention must squeeze the whole sentence into one vector. This one looks back at the source for every word it writes: see “${word}”.` : `Every position asks anew where to look: see “${word}”.`;
  } },
  { screen: "align", at: "map", title: "The same, as numbers", text: (p) => `Each row is ${across(p) ? "a word that was written, each column a part of the source" : "a query, each column a key"}, and a ${p.dark.value ? "brighter" : "darker"} cell is a greater weight. The weights of a row add up to one: more here is less there.` },
  { screen: "align", at: "head", title: "Which attention is this?", text: (p) => { const name = headsName(p.heads.value, p.map.value.how.heads); return `${name[0].toUpperCase()}${name.slice(1)} of ${siteName(p.map.value.site)}.${heads(p) > 1 ? " Choose another, and every view follows." : ""}`; } },
  { screen: "step", at: "zooms", title: "Where a weight comes from", before: (p) => { if (typeof p.head.value !== "number") p.head.value = p.heads.value[0]; p.zoom.value = "row"; }, text: (p) => (scores(p) ? "A query is compared with every key. Each comparison is a score e, and the normaliser turns the scores of one row into weights." : "The weights of one query over all keys.") },
  { screen: "step", at: "zooms", title: "Down to the arithmetic", before: (p) => (p.zoom.value = "weight"), text: (p) => (scores(p) ? "One weight, coordinate by coordinate. Nothing is invented: these are the model's tensors." : "Of this map only the weights were recorded; a page with queries and keys shows the arithmetic here.") },
  { screen: "heads", at: "heads", title: "Several heads, several questions", before: (p) => (p.zoom.value = "row"), text: (p) => `A model can look in several ways at once: here are all ${heads(p)} heads, on one colour scale. Some look one token back, some at the first token, some align.` },
  { screen: "believe", at: "verdict", title: "Is it true?", text: (p) => `A map shows where a model looked, not why it answered. So the output is asked: what changes if the weights are shuffled, or a ${p.run.value.media ? "part" : "token"}'s value is taken away?` },
  { screen: "words", at: "lens", title: "A prediction takes shape", text: () => "Layer by layer the state of a position turns into a prediction. Where the prediction changes, a layer has found something." },
  { screen: "align", at: "take", title: "Take it along", text: (p) => `Export gives the view as a picture or as numbers, a link to it, and the Python that makes it.${p.document.value.live ? " Now try your own sentence." : ""}` },
];

/** The stops that this page has something to show at. */
export function stops(page: State, screens: Screen[]): Stop[] {
  const ribbons = !page.run.value.media && Math.max(page.grid.value.rows.names.length, page.grid.value.columns.names.length) <= 80;
  return STOPS.filter((stop) => screens.includes(stop.screen) && (stop.at !== "ribbons" || ribbons) && (stop.screen !== "heads" || heads(page) > 1));
}

export function Tour({ root, screens }: { root: () => HTMLElement | null; screens: Screen[] }) {
  const page = usePage();
  const own = useRef<HTMLElement>(null);
  const number = page.tour.value;
  const all = number === null ? [] : stops(page, screens);
  const stop = number === null ? null : all[Math.min(number, all.length - 1)];
  useLayoutEffect(() => {
    const lit = stop?.at ? root()?.querySelector<HTMLElement>(`[data-tour="${stop.at}"]`) : null;
    if (!lit) return;
    lit.classList.add("lit");
    // above the tour's own card: all of it, or its beginning
    const below = (own.current?.offsetHeight ?? 0) + 36;
    lit.style.scrollMargin = `12px 0 ${below}px`;
    lit.scrollIntoView({ block: lit.offsetHeight + 12 > innerHeight - below ? "start" : "nearest" });
    return () => { lit.classList.remove("lit"); lit.style.scrollMargin = ""; };
  });
  if (!stop || number === null) return null;
  const go = (n: number | null) => {
    if (n !== null) {
      all[n].before?.(page);
      page.screen.value = all[n].screen;
    }
    page.tour.value = n;
  };
  return (
    <aside ref={own} class="card tour" aria-label="tour" onKeyDown={(e) => e.key === "Escape" && go(null)}>
      <header><h2>{stop.title}</h2><span class="grow" /><span class="note">{number + 1} of {all.length}</span></header>
      <p aria-live="polite">{stop.text(page)}</p>
      <div class="chips" style={{ marginTop: "10px" }}>
        <button disabled={number === 0} onClick={() => go(number - 1)}>back</button>
        {number + 1 < all.length ? <button aria-pressed="true" onClick={() => go(number + 1)}>next</button> : <button aria-pressed="true" onClick={() => go(null)}>done</button>}
        <button onClick={() => go(null)}>leave</button>
      </div>
    </aside>
  );
}

export function begin(page: State, screens: Screen[]) {
  const [first] = stops(page, screens);
  first.before?.(page);
  page.screen.value = first.screen;
  page.tour.value = 0;
}
