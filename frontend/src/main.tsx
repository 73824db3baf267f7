// The page: mounts itself into an element, from a document and its tensors.
import { batch } from "@preact/signals";
import { render as renderTree } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { StateContext, usePage } from "./context";
import { Reader, readTensors, type Document } from "./document";
import { ask, useTest } from "./live";
import { Tensors } from "./safetensors";
import { Align } from "./screens/align";
import { Believe, BelieveLine } from "./screens/believe";
import { Compare } from "./screens/compare";
import { Heads } from "./screens/heads";
import { Long } from "./screens/long";
import { Media } from "./screens/media";
import { Step } from "./screens/step";
import { Ways } from "./screens/ways";
import { WordsInLayers } from "./screens/words";
import { createState, NOWHERE, type Screen, type State } from "./state";
import css from "./style.css";
import { TakeAlong } from "./take";
import { begin, Tour } from "./tour";

const NAMES: Record<Screen, string> = { // in this order
  media: "Picture and sound", align: "Align", step: "Step", heads: "Heads", long: "Long view", believe: "Believe it?", compare: "Compare", words: "Logit lens", ways: "Word's way",
};
const MEDIA = { picture: "Picture", sound: "Sound" };
const VIEWS = { align: Align, step: Step, heads: Heads, long: Long, believe: Believe, compare: Compare, media: Media, words: WordsInLayers, ways: Ways };

function screensOf(page: State): Screen[] {
  const run = page.run.value;
  return (Object.keys(NAMES) as Screen[]).filter((one) => {
    if (one === "media") return !!run.media;
    if (one === "words") return !!run.lens;
    if (one === "ways") return !!page.document.value.ways?.some(({ runs }) => runs.includes(page.runIndex.value));
    if (one === "compare" && page.document.value.runs.length === 1 && run.maps.length === 1 && run.maps[0].how.heads === 1) return false;
    if (one === "believe") return !!run.believe || !!page.document.value.live;
    return true;
  });
}

function AskForm() {
  const page = usePage();
  const live = page.document.value.live!;
  const [text, setText] = useState(page.run.value.source ?? "");
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState("");
  const put = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setFault("");
    try {
      const { document, tensors } = await ask<{ document: Document; tensors: string }>(live, "look", { text });
      const reader = new Reader(await readTensors(tensors));
      batch(() => {
        page.reader.value = reader;
        page.tests.value = new Map();
        page.document.value = { ...document, live, atlas: page.document.value.atlas };
        page.pinned.value = null;
        page.hover.value = NOWHERE;
        page.runIndex.value = 0;
        page.other.value = null;
      });
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
    setBusy(false);
  };
  return (
    <form class="ask" onSubmit={put}>
      <input type="text" aria-label="your own text" placeholder="your own sentence" value={text} onInput={(e) => setText(e.currentTarget.value)} />
      <button disabled={busy || !text.trim()}>{busy ? "looking …" : "look"}</button>
      {fault && <span role="alert" class="believe doubt">{fault}</span>}
    </form>
  );
}

function Shell({ framed }: { framed: boolean }) {
  const page = usePage();
  const root = useRef<HTMLDivElement>(null);
  const screens = screensOf(page);
  const screen = screens.includes(page.screen.value) ? page.screen.value : screens[0];
  const View = VIEWS[screen];
  useTest(page);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const set = () => (page.systemDark.value = query.matches);
    set();
    query.addEventListener("change", set);
    return () => query.removeEventListener("change", set);
  }, []);
  const tabKeys = (event: KeyboardEvent) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const next = screens[(screens.indexOf(screen) + step + screens.length) % screens.length];
    page.screen.value = next;
    root.current?.querySelector<HTMLElement>(`#tab-${next}`)?.focus();
  };
  return (
    <div class={`page${page.dark.value ? " dark" : ""}${framed ? " framed" : ""}${page.tour.value === null ? "" : " toured"}`} ref={root}>
      <header class="top">
        <h1 class="mark">regard<small>{page.document.value.model || page.document.value.title}</small></h1>
        {page.document.value.live ? <AskForm /> : <span class="grow" />}
        <button onClick={() => begin(page, screens)}>tour</button>
        <TakeAlong framed={framed} />
        <button aria-label={page.dark.value ? "light colours" : "dark colours"} onClick={() => (page.theme.value = page.dark.value ? "light" : "dark")}>{page.dark.value ? "☀" : "☾"}</button>
      </header>
      <nav class="tabs" role="tablist" aria-label="views" onKeyDown={tabKeys}>
        {screens.map((one) => (
          <button key={one} id={`tab-${one}`} role="tab" aria-selected={one === screen} aria-controls="view" tabIndex={one === screen ? 0 : -1} onClick={() => (page.screen.value = one)}>{one === "media" && page.run.value.media ? MEDIA[page.run.value.media.kind] : NAMES[one]}</button>
        ))}
      </nav>
      {screen !== "believe" && <BelieveLine />}
      <div id="view" role="tabpanel" aria-labelledby={`tab-${screen}`} style={{ display: "grid", gap: "18px", minWidth: 0, gridTemplateColumns: "minmax(0, 1fr)" }}><View /></div>
      <Tour root={() => root.current} screens={screens} />
    </div>
  );
}

/** Puts a page into an element; gives a function that takes it away. */
export function mount(element: HTMLElement, document: Document, tensors: Tensors, framed = false): () => void {
  element.replaceChildren();
  const host = globalThis.document.createElement("div");
  element.append(host);
  const shadow = host.attachShadow({ mode: "open" });
  const style = globalThis.document.createElement("style");
  style.textContent = css;
  const place = globalThis.document.createElement("div");
  shadow.append(style, place);
  const state = createState({ document, reader: new Reader(tensors) }, !framed);
  renderTree(<StateContext.Provider value={state}><Shell framed={framed} /></StateContext.Provider>, place);
  return () => { renderTree(null, place); host.remove(); };
}

/** anywidget's entry: the document and the tensors come as traits. */
function render({ model, el }: { model: { get(name: string): unknown }; el: HTMLElement }): () => void {
  const raw = model.get("tensors") as DataView;
  const buffer = raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength) as ArrayBuffer;
  return mount(el, JSON.parse(String(model.get("document"))) as Document, new Tensors(buffer), true);
}

export default { render };
export { Head } from "./attention";
export { DARK, LIGHT } from "./colour";
export { Tensors } from "./safetensors";

async function start() {
  const own = globalThis.document?.getElementById("document");
  const packed = globalThis.document?.getElementById("tensors");
  const place = globalThis.document?.getElementById("regard");
  if (!own || !packed || !place) return;
  try {
    mount(place, JSON.parse(own.textContent!) as Document, await readTensors(packed.textContent!), window !== window.parent);
  } catch (error) {
    place.prepend(`This page cannot be shown: ${error instanceof Error ? error.message : error}`);
    throw error;
  }
}

if (typeof document !== "undefined") void start();
