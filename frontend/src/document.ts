// What a page holds, and the questions that its screens ask of it.
import { Head, type How } from "./attention";
import { Tensors } from "./safetensors";

export interface Words {
  texts: string[];
  /** The word of each token; -1 for none. */
  owner: number[];
  log_prob?: number[];
  entropy?: number[];
}

export interface MapInfo {
  site: string;
  tensors: string;
  how: How & { heads: number; queries: number; keys: number };
  /** Whether the page has the values; undefined where they were not kept. */
  values?: boolean;
  rows: string | null;
  columns: string | null;
}

export interface Prediction {
  token: string;
  probability: number;
  logit: number;
  from_state: number | null;
  from_context: number | null;
  bias: number | null;
}

export interface TraceStep {
  number: number;
  previous: string;
  token: string;
  asks: string;
  scores: number[];
  weights: number[];
  context_norm: number;
  predictions: Prediction[];
}

/** The test of a map: whether the output depends on its weights. */
export interface Believe {
  sentence: string;
  holds: boolean;
  /** Whether shuffling the weights changes the output much. */
  matters: boolean;
  /** Mean change of the output, in nats, when the weights are shuffled. */
  change: number;
  /** Rank correlation of the weight on a token and the drop without its value. */
  agreement: number;
  site: string;
  columns: string[];
  measures: Record<string, number[]>;
  step?: string;
}

export interface Lens {
  layers: string[];
  rows: string;
  /** Of every layer and position, the most probable tokens with their probabilities. */
  top: [string, number][][][];
}

export interface Media {
  kind: "picture" | "sound";
  /** A data: address. */
  address: string;
  /** Of a picture, [row, column] centres as shares; of a sound, seconds. */
  positions: number[][];
  seconds?: number;
  spectrogram?: string;
}

export interface Run {
  label: string;
  source?: string;
  text?: string;
  score?: number;
  log_prob?: number;
  sequences: Record<string, string[]>;
  words?: Record<string, Words>;
  maps: MapInfo[];
  chosen?: { site: string; heads: number[]; why: string };
  trace?: TraceStep[];
  believe?: Believe;
  /** The site whose map is tested when it is drawn, where a server answers. */
  to_test?: string;
  /** Why no map of it was tested. */
  untested?: string;
  lens?: Lens;
  media?: Media;
  made?: Made;
}

/** How a run was made: what makes it again, and whether the page's server can ask about it. */
export interface Made {
  model: string;
  /** Of the beam, from 0. */
  number: number;
  settings?: Record<string, string | number | boolean>;
  /** Whether by the page's first model, which is the one that answers its questions. */
  own?: boolean;
  /** Of the checkpoint of its training, where it is one. */
  step?: number;
}

/** The runs of one training on one input, in order of their steps, the trained model last; empty where there are no checkpoints. */
export function training(runs: Run[], run: Run): number[] {
  const found = runs.map((one, n) => [one.made?.step ?? Infinity, n] as const).filter(([step, n]) => {
    const { source, made } = runs[n];
    return source === run.source && !made?.number && (step < Infinity || made?.own);
  });
  return found.length > 1 && found.some(([step]) => step < Infinity) ? found.sort(([a], [b]) => a - b).map(([, n]) => n) : [];
}

/** Heads over a corpus: importance by ablation, and the roles that are significant. */
export interface Atlas {
  texts: number;
  own: boolean;
  importance: Record<string, number[]>;
  roles: { site: string; head: number; role: string; effect: number; p: number }[];
}

/** A word's way through the layers of an encoder, in every text where it stands. */
export interface Way {
  word: string;
  runs: number[];
  /** Where its neighbours are looked for. */
  layer: number;
  /** Shares of the variance that the plane's two directions hold. */
  explained: number[];
  /** Of every text and layer the place in the plane. */
  paths: number[][][];
  before: [string, number][];
  after: [string, number][][];
  towards: [string, number][][];
  moved_by: [string, number][][];
  /** Of every layer the standardised cosines between the texts. */
  cosines: number[][][];
}

export interface Document {
  regard: string;
  format: number;
  title: string;
  model?: string;
  task?: string;
  runs: Run[];
  atlas?: Atlas;
  ways?: Way[];
  live?: { token: string; models?: string[]; asks: string[] };
}

export type Side = "rows" | "columns";

/** An axis of a grid: its names, and the positions that each stands for. */
export interface Axis {
  names: string[];
  groups: number[][] | null;
}

/** A grid of weights with names: what is drawn. */
export interface Grid {
  rows: Axis;
  columns: Axis;
  /** The first row and column of a part of a map. */
  top: number;
  left: number;
  cells: Float32Array;
  /** How many columns each row may attend to; of a part of a map none. */
  allowed: number[];
  largest: number;
  /** Whether a weight is no number. */
  nan: boolean;
}

/** The tokens of an axis of a map; their numbers where they have no names. */
export function names(run: Run, map: MapInfo, side: Side): string[] {
  const size = side === "rows" ? map.how.queries : map.how.keys;
  const media = side === "columns" && map.columns === "source" ? run.media : undefined;
  if (media?.positions.length === size) return media.positions.map((place) => placeName(media, place));
  const own = run.sequences[map[side] ?? ""];
  return own && own.length >= size ? own.slice(0, size) : Array.from({ length: size }, (_, i) => String(i));
}

/** "row, column" of a picture's cell, counted from 1; the time of a sound's. */
function placeName(media: Media, place: number[]): string {
  if (media.kind === "sound") return `${place[0].toFixed(2)} s`;
  return place.map((share, axis) => Math.round(share * cellsAlong(media, axis) + 0.5)).join(",");
}

/** How many cells a picture has along an axis: 0 down, 1 across. */
export const cellsAlong = (media: Media, axis: number): number => new Set(media.positions.map((place) => place[axis])).size || 1;

/** What the keys of a map are, as its corner says. */
export function columnsAre(run: Run, map: MapInfo): string {
  if (map.rows === map.columns) return "key";
  if (!run.media || map.columns !== "source") return map.columns ?? "key";
  return run.media.kind === "picture" ? "row,column" : "time";
}

/** What the queries of a map are, as its corner says. */
export const rowsAre = (map: MapInfo): string => (map.rows === map.columns ? "query" : map.rows ?? "query");

/** The words of an axis of a map, or null where there are none. */
export function wordsOf(run: Run, map: MapInfo, side: Side): Words | null {
  const words = run.words?.[map[side] ?? ""];
  return words && words.texts.length ? words : null;
}

function axis(run: Run, map: MapInfo, side: Side, byWords: boolean): Axis {
  const words = byWords ? wordsOf(run, map, side) : null;
  if (!words) return { names: names(run, map, side), groups: null };
  const groups: number[][] = words.texts.map(() => []);
  words.owner.forEach((word, token) => {
    if (word >= 0 && groups[word]) groups[word].push(token);
  });
  return { names: words.texts, groups };
}

/** Some of an axis. */
const some = ({ names, groups }: Axis, from: number, size: number): Axis => ({ names: names.slice(from, from + size), groups: groups && groups.slice(from, from + size) });

/** A part of a map: its first row and column, and how many of each. */
export type Part = [number, number, number, number];

/** Reads maps out of a document's tensors. */
export class Reader {
  private heads = new Map<string, Head>();

  constructor(readonly tensors: Tensors) {}

  head(map: MapInfo, head: number): Head {
    const name = `${map.tensors}/${head}`;
    let found = this.heads.get(name);
    if (!found) {
      found = new Head(this.tensors, map.tensors, head, map.how.heads, map.how.queries, map.how.keys, map.how);
      this.heads.set(name, found);
    }
    return found;
  }

  /** A number of each position, where the page was given it. */
  given(map: MapInfo, name: string, head: number): Float32Array | null {
    const tensor = this.tensors.get(`${map.tensors}.${name}`);
    if (!tensor) return null;
    const size = tensor.data.length / map.how.heads;
    return tensor.data.subarray(head * size, (head + 1) * size) as Float32Array;
  }

  /** The mean over heads, of rows of tokens; by words: summed over a word's keys, averaged over its queries,
   * rows divided by their sum, as an alignment is. Of a map or a part of it, moved into the map. */
  grid(run: Run, map: MapInfo, heads: number[], byWords: boolean, part?: Part): Grid {
    const rows = axis(run, map, "rows", byWords);
    const columns = axis(run, map, "columns", byWords);
    const { groups } = columns;
    const [t, s] = [rows, columns].map(({ names }) => names.length);
    const [height, n] = part ? [Math.min(t, part[2]), Math.min(s, part[3])] : [t, s];
    const [top, left] = part ? [Math.max(0, Math.min(part[0], t - height)), Math.max(0, Math.min(part[1], s - n))] : [0, 0];
    const cells = new Float32Array(height * n);
    for (let r = 0; r < height; r++) {
      const asked = rows.groups ? rows.groups[top + r] : [top + r];
      const row = new Float64Array(s);
      for (const head of heads) {
        const one = this.head(map, head);
        const alone = part && !groups && one.direct; // the rest of the row is not needed
        for (const i of asked) {
          const weights = alone ? null : one.row(i);
          for (let c = alone ? left : 0; c < (alone ? left + n : s); c++) {
            let sum = 0;
            if (groups) for (const j of groups[c]) sum += weights![j];
            else sum = weights ? weights[c] : one.weight(i, c);
            row[c] += sum / heads.length / asked.length;
          }
        }
      }
      const sum = groups ? row.reduce((a, b) => a + b, 0) : 1;
      for (let c = 0; c < n; c++) cells[r * n + c] = row[left + c] / (sum > 0 ? sum : 1);
    }
    const largest = cells.reduce((a, b) => (b > a ? b : a), 0);
    const found = { rows: some(rows, top, height), columns: some(columns, left, n), top, left, cells, largest, nan: cells.some(Number.isNaN) };
    if (part) return { ...found, allowed: [] };
    // weights that were given without a mask are causal where none is after the diagonal
    const causal = map.how.queries === map.how.keys && t === n && cells.every((x, at) => at % n <= Math.floor(at / n) || x === 0);
    const allowed = rows.names.map((_, r) => {
      const asked = rows.groups ? rows.groups[r] : [r];
      let found = 0;
      for (let c = 0; c < (causal ? r + 1 : n); c++) {
        const keys = columns.groups ? columns.groups[c] : [c];
        if (heads.some((head) => asked.some((i) => keys.some((j) => this.head(map, head).allowed(i, j))))) found++;
      }
      return found;
    });
    return { ...found, allowed };
  }
}

/** H = -Σ p ln p of a row divided by its sum, in nats. */
export function entropy(row: ArrayLike<number>): number {
  let sum = 0;
  for (let j = 0; j < row.length; j++) sum += row[j];
  if (!(sum > 0)) return 0;
  let found = 0;
  for (let j = 0; j < row.length; j++) {
    const p = row[j] / sum;
    if (p > 0) found -= p * Math.log(p);
  }
  return found;
}

/** The entropy of a map's rows, as a share of that of equal weights; 0 where no row may attend to two keys. */
export function evenness(grid: Grid): number {
  const n = grid.columns.names.length;
  let found = 0, most = 0;
  grid.allowed.forEach((keys, r) => {
    if (keys < 2 || Number.isNaN(grid.cells[r * n])) return;
    found += entropy(grid.cells.subarray(r * n, (r + 1) * n));
    most += Math.log(keys);
  });
  return most ? found / most : 0;
}

/** The share of the greatest entropy from which on a head has no other role. */
const EVEN = 0.95;

/** Roles of a head that one map shows: the mean weight on the key before, the same, the first, the diagonal. */
export interface Roles {
  entropy: number;
  previous: number;
  same: number;
  first: number;
  diagonal: number;
  /** Whether its rows have nearly the entropy of equal weights. */
  even: boolean;
  /** “nearly uniform”, or else the role with the most weight, in words. */
  name: string;
}

export function roles(grid: Grid, square: boolean): Roles {
  const t = grid.rows.names.length;
  const s = grid.columns.names.length;
  const sums = { entropy: 0, previous: 0, same: 0, first: 0, diagonal: 0 };
  for (let i = 0; i < t; i++) {
    const row = grid.cells.subarray(i * s, (i + 1) * s);
    sums.entropy += entropy(row) / t;
    sums.first += row[0] / t;
    if (square && i > 0) sums.previous += row[i - 1] / Math.max(1, t - 1);
    if (square) sums.same += row[i] / t;
    const middle = t > 1 ? (i * (s - 1)) / (t - 1) : 0;
    for (let j = Math.floor(middle - 1); j <= Math.ceil(middle + 1); j++) if (j >= 0 && j < s) sums.diagonal += row[j] / t;
  }
  const even = evenness(grid) > EVEN;
  return { ...sums, even, name: roleName(sums, square, even) };
}

function roleName(sums: Pick<Roles, "previous" | "same" | "first" | "diagonal">, square: boolean, even: boolean): string {
  const candidates: [string, number][] = square
    ? [["previous token", sums.previous], ["same token", sums.same], ["first token", sums.first]]
    : [["diagonal", sums.diagonal], ["first token", sums.first]];
  const [name, share] = candidates.reduce((a, b) => (b[1] > a[1] ? b : a));
  return even ? "nearly uniform" : share >= 0.4 ? name : "no clear pattern";
}

export const ASKED = 128; // rows of a long map from which its roles are read

/** The roles of a head of a long map, from rows at equal distances; its entropies were given. */
export function rolesOfLong(reader: Reader, map: MapInfo, head: number, square: boolean): Roles {
  const { queries: t, keys: s } = map.how;
  const one = reader.head(map, head), entropies = reader.given(map, "entropy", head);
  const sums = { entropy: 0, previous: 0, same: 0, first: 0, diagonal: 0 };
  const every = Math.ceil(t / ASKED), count = Math.ceil(t / every);
  let most = 0;
  for (let i = 0; i < t; i += every) {
    const at = (j: number) => (j >= 0 && j < s ? one.weight(i, j) / count : 0);
    const middle = Math.round((i * (s - 1)) / Math.max(1, t - 1));
    sums.first += at(0);
    if (square) sums.previous += at(i - 1);
    if (square) sums.same += at(i);
    for (let j = middle - 1; j <= middle + 1; j++) sums.diagonal += at(j);
    sums.entropy += (entropies?.[i] ?? entropy(one.row(i))) / count;
    most += Math.log(Math.max(1, one.open(i))) / count;
  }
  const even = sums.entropy > EVEN * most;
  return { ...sums, even, name: roleName(sums, square, even) };
}

/** Attention modules of regard, torch and transformers in words. */
const KINDS: Record<string, string> = {
  self: "self-attention", self_attn: "self-attention", SelfAttention: "self-attention", cross: "cross-attention", cross_attn: "cross-attention",
  multihead_attn: "cross-attention", encoder_attn: "cross-attention", EncDecAttention: "cross-attention", attn: "attention",
};
const OF_TWO: Record<string, string> = { attention: "self-attention", crossattention: "cross-attention" };

/** A site in words, layers numbered from 0 as in its path: "decoder.layers.1.cross" → "decoder layer 1 · cross-attention". */
export function siteName(site: string): string {
  const parts = site.split(".");
  const layer = parts.findIndex((part) => /^\d+$/.test(part));
  const named = (part: string) => KINDS[part] ?? part;
  if (layer < 0) return parts.map(named).join(" ");
  const stack = parts.slice(0, layer).filter((part) => part !== "layers" && part !== "layer" && part !== "block" && part !== "h").join(" ");
  const last = parts.slice(layer + 1);
  const kind = (last.length === 2 && last[1] === "self" ? [OF_TWO[last[0]] ?? last.map(named).join(" ")] // a BERT's modules
    : last.length === 3 && last[0] === "layer" ? [named(last[2])] // a T5's, whose layers are in blocks
      : last.map(named)).join(" ");
  return `${stack ? `${stack} ` : ""}layer ${parts[layer]}${kind ? ` · ${kind}` : ""}`;
}

export function headsName(heads: number[], all: number): string {
  if (all === 1) return "its only head";
  if (heads.length === 1) return `head ${heads[0]} (of ${all})`;
  return heads.length === all ? `mean of its ${all} heads` : `mean of heads ${heads.join(", ")}`;
}

/** One head beside the name of its layer. */
export const headName = (head: number, all: number): string => (all === 1 ? "its only head" : `head ${head}`);

/** Bytes of base64, deflated. */
export async function inflate(text: string): Promise<ArrayBuffer> {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  const quick = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (quick) return quick.call(Uint8Array, text); // of browsers since 2025
  const letters = atob(text);
  const packed = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n++) packed[n] = letters.charCodeAt(n); // much faster than Uint8Array.from
  return packed;
}

export async function readTensors(text: string): Promise<Tensors> {
  return new Tensors(await inflate(text.trim()));
}
