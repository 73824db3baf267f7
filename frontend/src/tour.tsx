// A tour on the visitor's own sentence: the notes' story, one thing at a time.
import { useLayoutEffect } from "preact/hooks";
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

const first = (page: State) => page.grid.value?.rows.names[Math.min(1, (page.grid.value?.rows.names.length ?? 1) - 1)] ?? "a word";

const STOPS: Stop[] = [
  { screen: "align", at: "ribbons", title: "One sentence, two lines", text: (p) => (p.run.value.text ? `Above, what the model read; below, what it wrote: “${p.run.value.text}”. A ribbon joins an output word with what it attended to.` : "Above, the keys; below, the queries. A ribbon joins a query with what it attends to."), before: (p) => { p.site.value = ""; p.head.value = "chosen"; p.pinned.value = null; } },
  { screen: "align", at: "sentence", title: "Instead of one vector", text: (p) => `A translator without attention would squeeze the sentence into one vector. This one looks back at every step: see “${first(p)}”.`, before: (p) => (p.pinned.value = { row: Math.min(1, (p.grid.value?.rows.names.length ?? 1) - 1), column: null }) },
  { screen: "align", at: "map", title: "The same, as numbers", text: () => "Each row is one written word, each column one word that was read, and a darker cell is a greater weight. A row's weights add up to one: looking here means looking less there." },
  { screen: "align", at: "head", title: "Which attention is this?", text: (p) => `${headsName(p.heads.value, p.map.value.how.heads)} of ${siteName(p.map.value.site)}. ${p.why.value ? `Shown because: ${p.why.value}.` : ""} Choose another, and everything follows.` },
  { screen: "step", at: "zooms", title: "Where a weight comes from", text: () => "A query meets every key. Their product is the score e, and a softmax turns the scores of one row into weights.", before: (p) => { if (typeof p.head.value !== "number") p.head.value = p.heads.value[0]; } },
  { screen: "step", at: "zooms", title: "Down to the arithmetic", text: () => "Choose “one weight” above: coordinate by coordinate, query times key. Nothing is invented; these are the model's tensors." },
  { screen: "heads", at: "", title: "Several heads, several questions", text: (p) => `One look a step is little, so a Transformer has several heads: here are all ${p.run.value.maps.reduce((n, m) => n + m.how.heads, 0)}, on one colour scale. Some look one token back, some at the first token, some align.` },
  { screen: "words", at: "lens", title: "A word on its way", text: () => "Layer by layer the state of a position turns into a prediction. Where it changes its mind, something was found." },
  { screen: "believe", at: "", title: "Is it true?", text: () => "A map shows where a model looked, not why it answered. So the output is asked: what changes if the weights are shuffled, or a word's value is taken away?" },
  { screen: "align", at: "take", title: "Export", text: () => "The view as a picture or numbers, a link to it, and the Python that makes it. Now try your own sentence." },
];

export function stops(page: State): Stop[] {
  return STOPS.filter((stop) => (stop.screen !== "words" || page.run.value.lens) && (stop.at !== "ribbons" || page.grid.value));
}

export function Tour({ root }: { root: () => HTMLElement | null }) {
  const page = usePage();
  const number = page.tour.value;
  const all = stops(page);
  const stop = number === null ? null : all[Math.min(number, all.length - 1)];
  useLayoutEffect(() => {
    const lit = stop?.at ? root()?.querySelector<HTMLElement>(`[data-tour="${stop.at}"]`) : null;
    lit?.classList.add("lit");
    lit?.scrollIntoView({ block: "nearest" });
    return () => lit?.classList.remove("lit");
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
    <aside class="card tour" aria-label="tour" onKeyDown={(e) => e.key === "Escape" && go(null)}>
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

export function begin(page: State) {
  STOPS[0].before?.(page);
  page.screen.value = STOPS[0].screen;
  page.tour.value = 0;
}
