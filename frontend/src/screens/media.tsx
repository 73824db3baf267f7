// Where in a picture, or when in a recording, each word was read.
import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { usePage } from "../context";
import { colour } from "../colour";
import { draw, HeadPicker, Legend, useEvery } from "../parts";

export function Media() {
  const page = usePage();
  const run = page.run.value;
  const media = run.media;
  const grid = page.grid.value;
  const [word, setWord] = useState(0);
  const [playing, setPlaying] = useState(false);
  const [blend, setBlend] = useState(0.65);
  const over = useRef<HTMLCanvasElement>(null);
  const line = useRef<HTMLCanvasElement>(null);
  const sound = useRef<HTMLAudioElement>(null);
  const [clock, setClock] = useState(0);
  const [size, setSize] = useState(0); // of the picture as it is shown: known once it is loaded
  useLayoutEffect(() => {
    if (!over.current) return;
    const observer = new ResizeObserver(() => over.current && setSize(over.current.clientHeight));
    observer.observe(over.current);
    return () => observer.disconnect();
  }, [media]);
  const rows = grid?.rows.names.length ?? 0;
  const n = grid?.columns.names.length ?? 0;
  const row = Math.min(word, Math.max(0, rows - 1));
  const colours = page.scale.value.weights;
  const dark = page.dark.value;
  useEvery(900, playing && media?.kind === "picture", useCallback(() => setWord((now) => (now + 1) % Math.max(1, rows)), [rows]));
  useLayoutEffect(() => {
    if (!grid || !media) return;
    const weights = grid.cells.subarray(row * n, (row + 1) * n);
    const most = weights.reduce((a, b) => Math.max(a, b), 0) || 1;
    if (media.kind === "picture" && over.current) {
      const tall = new Set(media.positions.map((p) => p[0])).size || 1, wide = new Set(media.positions.map((p) => p[1])).size || 1;
      draw(over.current, over.current.clientWidth, over.current.clientHeight, (c) => {
        const height = over.current!.clientHeight / tall, width = over.current!.clientWidth / wide;
        media.positions.forEach(([y, x], j) => {
          c.fillStyle = `rgba(8,10,14,${(blend * (1 - weights[j] / most)).toFixed(3)})`;
          const left = Math.round((x - 0.5 / wide) * wide) * width, top = Math.round((y - 0.5 / tall) * tall) * height;
          c.fillRect(left, top, Math.ceil(width), Math.ceil(height));
        });
      });
    }
    if (media.kind === "sound" && line.current) {
      draw(line.current, line.current.clientWidth, 56, (c) => {
        const seconds = media.seconds || 1;
        const wide = line.current!.clientWidth / n;
        media.positions.forEach(([at], j) => {
          const [r, g, b] = colour(colours, weights[j], most);
          c.fillStyle = `rgb(${r},${g},${b})`;
          c.fillRect((at / seconds) * line.current!.clientWidth - wide / 2, 0, Math.ceil(wide), 56);
        });
      });
    }
  }, [grid, row, colours, dark, blend, media, size]);
  if (!media || !grid) return <section class="card"><p>There is no picture and no recording here.</p></section>;
  /** The word that is read at a time: the one with the greatest weight there. */
  const wordAt = (seconds: number): number => {
    const j = media.positions.reduce((best, [at], k) => (Math.abs(at - seconds) < Math.abs(media.positions[best][0] - seconds) ? k : best), 0);
    let best = 0;
    for (let r = 0; r < rows; r++) if (grid.cells[r * n + j] > grid.cells[best * n + j]) best = r;
    return best;
  };
  return (
    <section class="card" data-tour="media">
      <header><h2>{media.kind === "picture" ? "Where each word was seen" : "When each word was heard"}</h2><span class="grow" />{media.kind === "sound" && <Legend most={grid.largest} />}</header>
      <HeadPicker />
      <div class="chips" style={{ margin: "12px 0" }}>
        {grid.rows.names.map((name, r) => <button key={r} aria-pressed={r === row} onPointerEnter={() => setWord(r)} onFocus={() => setWord(r)} onClick={() => setWord(r)}>{name}</button>)}
        {media.kind === "picture" && <button aria-pressed={playing} onClick={() => setPlaying(!playing)}>{playing ? "stop" : "word by word"}</button>}
      </div>
      {media.kind === "picture" ? (
        <>
          <div class="picture"><img src={media.address} alt={run.source ?? "the picture"} /><canvas ref={over} role="img" aria-label={`what “${grid.rows.names[row]}” attended to stays bright`} /></div>
          <label class="bar-line"><span class="note">shade </span><input type="range" min={0} max={1} step={0.05} value={blend} aria-label="shade" onInput={(e) => setBlend(Number(e.currentTarget.value))} /></label>
          <p class="note">Exact cells of the encoder, not smoothed: what “{grid.rows.names[row]}” gave the greatest weight stays bright.</p>
        </>
      ) : (
        <>
          <div class="spec">
            {media.spectrogram && <img src={media.spectrogram} alt="spectrogram, low frequencies below" />}
            <canvas ref={line} role="img" aria-label={`weights of “${grid.rows.names[row]}” over time`} />
            <div class="head" style={{ left: `${(100 * clock) / (media.seconds || 1)}%` }} />
          </div>
          <audio ref={sound} controls src={media.address} style={{ width: "100%" }} onTimeUpdate={(e) => { setClock(e.currentTarget.currentTime); setWord(wordAt(e.currentTarget.currentTime)); }} />
        </>
      )}
    </section>
  );
}
