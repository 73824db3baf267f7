// Where in a picture, or when in a recording, each word was read.
import { Fragment } from "preact";
import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { usePage } from "../context";
import { colour, css } from "../colour";
import { cellsAlong, type Grid, type Media as Found } from "../document";
import { draw, HeadPicker, Legend, RunPicker, useEvery } from "../parts";

/** The width and height of an element, as they change. */
function useSize<T extends HTMLElement>() {
  const own = useRef<T>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => own.current && setSize({ width: own.current.clientWidth, height: own.current.clientHeight }));
    if (own.current) observer.observe(own.current);
    return () => observer.disconnect();
  }, []);
  return [own, size] as const;
}

/** A picture whose cells are the darker, the less weight they were given. */
function Shaded({ media, weights, blend, label }: { media: Found; weights: Float32Array; blend: number; label: string }) {
  const [over, { width, height }] = useSize<HTMLCanvasElement>();
  useLayoutEffect(() => {
    const most = weights.reduce((a, b) => (b > a ? b : a), 0) || 1;
    const down = cellsAlong(media, 0), across = cellsAlong(media, 1);
    draw(over.current!, width, height, (c) => media.positions.forEach(([y, x], j) => {
      c.fillStyle = `rgba(8,10,14,${(blend * (1 - (weights[j] || 0) / most)).toFixed(3)})`;
      // neighbours share an edge, on a whole pixel: no seam is left, and none is shaded twice
      const edge = (share: number, cells: number, size: number) => Math.round((Math.round(share * cells) * size) / cells);
      const left = edge(x - 0.5 / across, across, width), top = edge(y - 0.5 / down, down, height);
      c.fillRect(left, top, edge(x + 0.5 / across, across, width) - left, edge(y + 0.5 / down, down, height) - top);
    }));
  }, [media, weights, blend, width, height]);
  return <span class="picture"><img src={media.address} alt="" /><canvas ref={over} role="img" aria-label={label} /></span>;
}

interface Shown {
  grid: Grid;
  media: Found;
  word: number;
  setWord: (word: number) => void;
}

const rowOf = (grid: Grid, row: number) => grid.cells.subarray(row * grid.columns.names.length, (row + 1) * grid.columns.names.length);

function Picture({ grid, media, word, setWord }: Shown) {
  const [playing, setPlaying] = useState(false);
  const [blend, setBlend] = useState(0.7);
  const rows = grid.rows.names.length;
  useEvery(900, playing, useCallback(() => setWord((word + 1) % Math.max(1, rows)), [rows, word]));
  return (
    <div class="seen">
      <div>
        <Shaded media={media} weights={rowOf(grid, word)} blend={blend} label={`what “${grid.rows.names[word]}” attended to stays bright`} />
        <div class="bar-line" style={{ margin: "10px 0" }}>
          <button aria-pressed={playing} onClick={() => setPlaying(!playing)}>{playing ? "stop" : "word by word"}</button>
          <label class="bar-line"><span class="note">shade</span><input type="range" min={0} max={1} step={0.05} value={blend} aria-label="shade" onInput={(e) => setBlend(Number(e.currentTarget.value))} /></label>
        </div>
        <p class="note">The cell that “{grid.rows.names[word]}” gave the greatest weight has the picture's own brightness; a cell without weight is darkest. These are the encoder's {cellsAlong(media, 0)} × {cellsAlong(media, 1)} cells, not smoothed.</p>
      </div>
      <div class="each" role="group" aria-label="words">
        {grid.rows.names.map((name, r) => (
          <button key={r} class={r === word ? "on" : ""} aria-pressed={r === word} onClick={() => setWord(r)} onFocus={() => setWord(r)} onPointerEnter={() => setWord(r)}>
            <Shaded media={media} weights={rowOf(grid, r)} blend={blend} label={`weights of “${name}”`} />
            <span>{name}</span>
          </button>
        ))}
      </div>
    </div>
  );
}

/** The weights of a word over time. */
function Strip({ media, weights, most, label }: { media: Found; weights: Float32Array; most: number; label: string }) {
  const page = usePage();
  const [line, { width, height }] = useSize<HTMLCanvasElement>();
  const scale = page.scale.value;
  useLayoutEffect(() => {
    const seconds = media.seconds || 1, wide = width / weights.length;
    draw(line.current!, width, height, (c) => media.positions.forEach(([at], j) => {
      c.fillStyle = css(Number.isNaN(weights[j]) ? scale.none : colour(scale.weights, weights[j], most));
      const left = Math.round((at / seconds) * width - wide / 2);
      c.fillRect(left, 0, Math.round((at / seconds) * width + wide / 2) - left, height);
    }));
  }, [media, weights, most, scale, width, height]);
  return <canvas ref={line} role="img" aria-label={label} />;
}

function Sound({ grid, media, word, setWord }: Shown) {
  const page = usePage();
  const [clock, setClock] = useState(0);
  const seconds = media.seconds || 1;
  /** The word that is read at a time: the one with the greatest weight there. */
  const wordAt = (now: number): number => {
    const n = grid.columns.names.length;
    const j = media.positions.reduce((best, [at], k) => (Math.abs(at - now) < Math.abs(media.positions[best][0] - now) ? k : best), 0);
    return grid.rows.names.reduce((best, _, r) => (grid.cells[r * n + j] > grid.cells[best * n + j] ? r : best), 0);
  };
  return (
    <>
      <div class="heard" role="group" aria-label="words">
        {media.spectrogram && <><span class="note">spectrogram</span><img src={media.spectrogram} alt="spectrogram, low frequencies below" /></>}
        {grid.rows.names.map((name, r) => (
          <Fragment key={r}>
            <button aria-pressed={r === word} onClick={() => setWord(r)}>{name}</button>
            <Strip media={media} weights={rowOf(grid, r)} most={grid.largest} label={`weights of “${name}” over time`} />
          </Fragment>
        ))}
        <span class="note">seconds</span>
        <div class="clock">{Array.from({ length: 5 }, (_, n) => <span key={n}>{((seconds * n) / 4).toFixed(1)}</span>)}</div>
        <div class="over" aria-hidden="true"><i style={{ left: `${(100 * clock) / seconds}%` }} /></div>
      </div>
      <p class="note" style={{ marginTop: "10px" }}>A line for each word, {page.dark.value ? "bright" : "dark"} where its weight is greatest. Play the recording: the word with the greatest weight at that time is marked.</p>
      <audio controls src={media.address} style={{ width: "100%", marginTop: "12px" }} onTimeUpdate={(e) => { setClock(e.currentTarget.currentTime); setWord(wordAt(e.currentTarget.currentTime)); }} />
    </>
  );
}

export function Media() {
  const page = usePage();
  const media = page.run.value.media;
  const grid = page.grid.value;
  const [word, setWord] = useState(0);
  if (!media || !grid) return <section class="card"><p>There is no picture and no recording here.</p></section>;
  const shown = { grid, media, word: Math.min(word, Math.max(0, grid.rows.names.length - 1)), setWord };
  return (
    <section class="card" data-tour="media">
      <header><h2>{media.kind === "picture" ? "Where each word was seen" : "When each word was heard"}</h2><span class="grow" />{media.kind === "sound" && <Legend most={grid.largest} nan={grid.nan} />}</header>
      <div class="bar-line" style={{ marginBottom: "14px" }}><RunPicker /><HeadPicker /></div>
      {media.kind === "picture" ? <Picture {...shown} /> : <Sound {...shown} />}
    </section>
  );
}
