// Export: files of what is shown, a link to it, the Python that makes it again.
import { useRef, useState } from "preact/hooks";
import { usePage } from "./context";
import { styled } from "./colour";
import { headsName, siteName, type MapInfo } from "./document";
import { download, quoted, toCsv, toNpz, toSvg } from "./export";

/** A value as Python writes it. */
const literal = (x: string | number | boolean): string => (typeof x === "boolean" ? (x ? "True" : "False") : typeof x === "string" ? quoted(x) : String(x));

function python(page: ReturnType<typeof usePage>): string {
  const run = page.run.value, map = page.map.value, { task } = page.document.value;
  const model = run.made?.model ?? page.document.value.model;
  const heads = page.heads.value;
  const pick = heads.length === map.how.heads && heads.length > 1 ? ".mean_heads()" : heads.length === 1 ? `.select(${heads[0]})` : `.full()[${JSON.stringify(heads)}].mean(0)`;
  if (!model || run.source === undefined) return `import regard\n\nseen = regard.AttentionMap.load("map.safetensors")   # where you saved it\nseen${map.how.heads > 1 ? pick : ""}`;
  const { number = 0, settings } = run.made ?? {};
  const given = Object.entries(settings ?? {}).map(([name, value]) => `, ${name}=${literal(value)}`).join("");
  const byWords = page.byWords.value && [map.rows, map.columns].some((side) => run.words?.[side ?? ""]);
  const head = (of: string) => `head = ${of}${pick}${byWords ? "   # of tokens; the page joins them to words" : ""}`;
  const observed = (call: string) => ["with regard.observe(model) as seen:", `    ${call}`, head(`seen[${quoted(map.site)}][0].select(0)`)];
  const step = run.made?.step; // of a checkpoint
  const lines = step === undefined ? ["import regard", "", `model = regard.load(${quoted(model)})`]
    : ["import regard", "from regard.pipelines.checkpoints import checkpoints_of", "", `model = checkpoints_of(${quoted(model)})[${step}]`];
  // a text without an output of its own; the maps of a search, which hold the output's positions; those of a whole text
  if (task === "fill") return [...lines, `given = model.forward_pass(${quoted(run.source)})`, ...observed("given()"), 'seen.look("page.html", tokens=given.tokens)'].join("\n");
  lines.push(`made = model(${task === "answer" ? '"picture.png", ' : ""}${quoted(run.source)}${given})${settings ? "" : "   # and the settings that it was made with"}`);
  if (number) lines.push(`made = made.alternatives[${number - 1}]`);
  const whole = task === "complete" || (task === "translate" && !map.site.endsWith("cross"));
  return [...lines, ...(whole ? observed("made.forward_pass()()") : [head(`made.attention[${quoted(map.site)}]`)]), 'made.look("page.html")'].join("\n");
}

const MOST = 16_000_000; // weights of a map that are computed for a file

export function TakeAlong({ framed }: { framed: boolean }) {
  const page = usePage();
  const dialog = useRef<HTMLDialogElement>(null);
  const [done, setDone] = useState("");
  const name = () => `${(page.document.value.model || "map").replace(/[^\w-]+/g, "-")}-${page.map.value.site.replace(/[^\w.-]+/g, "-")}`;
  const grid = () => page.grid.value;
  const part = () => (page.large.value ? `, queries from ${grid().top + 1} and keys from ${grid().left + 1} on` : "");
  const title = () => `${page.document.value.title} (${headsName(page.heads.value, page.map.value.how.heads)} of ${siteName(page.map.value.site)}${part()})`;
  const small = !page.large.value || page.screen.value === "align"; // of a long map, the part that is shown there
  const svg = () => toSvg(grid(), title(), page.scale.value, styled(dialog.current!, "--ink"), styled(dialog.current!, "--paper"));
  const png = () => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width * 2;
      canvas.height = image.height * 2;
      canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => blob && download(`${name()}.png`, blob, "image/png"));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg())}`;
  };
  const pdf = () => { // in the colours of paper, which the maps have to be drawn in first
    const theme = page.theme.value;
    page.theme.value = "light";
    requestAnimationFrame(() => requestAnimationFrame(() => { globalThis.print(); page.theme.value = theme; }));
  };
  const cells = ({ how }: MapInfo) => how.heads * how.queries * how.keys;
  const fit = page.run.value.maps.filter((map) => cells(map) <= MOST);
  const npz = () => {
    const arrays: Record<string, { shape: number[]; data: Float32Array }> = {};
    for (const map of fit) {
      const { heads, queries, keys } = map.how;
      const data = new Float32Array(cells(map));
      for (let h = 0; h < heads; h++) for (let i = 0; i < queries; i++) data.set(page.reader.value.head(map, h).row(i), (h * queries + i) * keys);
      arrays[map.site] = { shape: [heads, queries, keys], data };
    }
    download(`${name()}.npz`, toNpz(arrays) as BlobPart, "application/zip");
  };
  const copy = (text: string, what: string) => navigator.clipboard?.writeText(text).then(() => setDone(`${what} copied`), () => setDone("the browser did not allow copying: select the text"));
  return (
    <span class="take">
      <button onClick={() => dialog.current!.showModal()} data-tour="take">export</button>
      <dialog ref={dialog} aria-labelledby="take-title" onClick={(e) => e.target === dialog.current && dialog.current!.close()}>
        <h2 id="take-title">Export</h2>
        <p class="note">{title()}</p>
        <div class="chips" style={{ margin: "12px 0" }}>
          {small && <button onClick={png}>PNG</button>}
          {small && <button onClick={() => download(`${name()}.svg`, svg(), "image/svg+xml")}>SVG</button>}
          <button onClick={pdf}>PDF (print)</button>
          {small && <button onClick={() => download(`${name()}.csv`, toCsv(grid()), "text/csv")}>CSV</button>}
          {fit.length > 0 && <button onClick={npz}>npz, all heads{fit.length < page.run.value.maps.length ? " of the smaller maps" : ""}</button>}
          {!framed && <button onClick={() => copy(location.href, "link")}>copy a link to this view</button>}
        </div>
        <p>The same in Python:</p>
        <pre tabIndex={0}>{python(page)}</pre>
        <div class="chips"><button onClick={() => copy(python(page), "Python")}>copy the Python</button><button onClick={() => dialog.current!.close()}>close</button></div>
        <p role="status" class="note">{done}</p>
      </dialog>
    </span>
  );
}
