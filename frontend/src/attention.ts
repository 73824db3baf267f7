// Exact weights of a map, from its queries and keys (or from given weights): what AttentionMap computes in Python.
import type { Tensor, Tensors } from "./safetensors";

/** How queries and keys become weights, as the map's note says. */
export interface How {
  score?: "dot" | "additive" | "distance";
  softcap?: number | null;
  width?: number;
  normalizer?: "softmax" | "uniform" | "sigmoid" | "share" | "entmax" | "sink";
  alpha?: number;
}

const ROWS = 8_000_000; // weights of rows that are kept: those of a strip of tiles

/** Axes of a tensor [(batch,) rows, …] that is broadcast over heads; the heads of keys may be fewer, and divide. */
function slice(tensor: Tensor, head: number, heads: number, axes: number): Tensor["data"] {
  const own = tensor.shape.slice(0, -axes).reduce((a, b) => a * b, 1);
  const size = tensor.shape.slice(-axes).reduce((a, b) => a * b, 1);
  const index = own === 1 ? 0 : Math.floor((head * own) / heads);
  return tensor.data.subarray(index * size, (index + 1) * size) as Tensor["data"];
}

/** α = entmax_α of scores (Peters, Niculae and Martins 2019): bisection of the threshold, in float64. */
export function entmax(scores: Float64Array, alpha: number): Float64Array {
  const n = scores.length;
  const weights = new Float64Array(n);
  let most = -Infinity;
  for (let j = 0; j < n; j++) most = Math.max(most, scores[j]);
  if (most === -Infinity) return weights;
  const factor = alpha - 1;
  const power = 1 / factor;
  let low = most * factor - 1;
  let high = most * factor;
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    let sum = 0;
    for (let j = 0; j < n; j++) {
      const over = scores[j] * factor - middle;
      if (over > 0) sum += over ** power;
    }
    if (sum >= 1) low = middle;
    else high = middle;
  }
  let sum = 0;
  for (let j = 0; j < n; j++) {
    const over = scores[j] * factor - low;
    if (over > 0) sum += weights[j] = over ** power;
  }
  for (let j = 0; j < n; j++) weights[j] /= sum || 1;
  return weights;
}

/** One head of a map: rows, cells and scores, computed when they are asked for. */
export class Head {
  readonly weights?: Tensor["data"];
  readonly query?: Tensor["data"];
  readonly key?: Tensor["data"];
  readonly width: number = 0;
  /** What the weights are given to, of `depth` coordinates a key. */
  readonly value?: Tensor["data"];
  readonly depth: number = 0;
  readonly v?: Tensor["data"];
  private sink = 0;
  private start?: Tensor["data"];
  private end?: Tensor["data"];
  private mask?: Tensor["data"];
  private diagonals?: Tensor["data"];
  private bias?: Tensor["data"];
  private numbers?: Tensor["data"];
  private rows = new Map<number, Float32Array>();

  constructor(
    tensors: Tensors, prefix: string, readonly head: number, heads: number,
    readonly queries: number, readonly keys: number, readonly how: How,
  ) {
    const part = (name: string, axes: number) => {
      const tensor = tensors.get(`${prefix}.${name}`);
      return tensor && slice(tensor, head, heads, axes);
    };
    this.weights = part("weights", 2);
    this.query = part("query", 2);
    this.key = part("key", 2);
    const query = tensors.get(`${prefix}.query`);
    if (query) this.width = query.shape[query.shape.length - 1];
    this.value = part("value", 2);
    this.depth = tensors.get(`${prefix}.value`)?.shape.at(-1) ?? 0;
    this.v = part("v", 1);
    const sink = tensors.get(`${prefix}.sink`);
    if (sink) this.sink = sink.data[sink.data.length === 1 ? 0 : Math.floor((head * sink.data.length) / heads)];
    this.start = part("mask.start", 1);
    this.end = part("mask.end", 1);
    this.mask = part("mask", 2);
    this.diagonals = part("bias.diagonals", 1);
    this.bias = part("bias", 2);
    this.numbers = part("numbers", 1);
  }

  /** Whether query i may look at key j. */
  allowed(i: number, j: number): boolean {
    if (this.start && this.end) return j >= this.start[i] && j < this.end[i];
    return !this.mask || !!this.mask[i * this.keys + j];
  }

  /** How many keys query i may look at. */
  open(i: number): number {
    if (this.start && this.end) return this.end[i] - this.start[i];
    if (!this.mask) return this.keys;
    let found = 0;
    for (let j = 0; j < this.keys; j++) if (this.mask[i * this.keys + j]) found++;
    return found;
  }

  /** The score before bias and mask. */
  product(i: number, j: number): number {
    const { query, key, width } = this;
    if (!query || !key) return NaN;
    const a = i * width;
    const b = j * width;
    let sum = 0;
    if (this.how.score === "additive") {
      for (let d = 0; d < width; d++) sum += this.v![d] * Math.tanh(query[a + d] + key[b + d]);
      return sum;
    }
    if (this.how.score === "distance") {
      for (let d = 0; d < width; d++) sum += (query[a + d] - key[b + d]) ** 2;
      return -sum / (2 * (this.how.width ?? 1) ** 2);
    }
    for (let d = 0; d < width; d++) sum += query[a + d] * key[b + d];
    const cap = this.how.softcap;
    return cap ? cap * Math.tanh(sum / cap) : sum;
  }

  biasOf(i: number, j: number): number {
    if (this.diagonals) return this.diagonals[j - i + this.queries - 1];
    return this.bias ? this.bias[i * this.keys + j] : 0;
  }

  /** e_ij, with bias; -Infinity where the mask forbids it. */
  score(i: number, j: number): number {
    return this.allowed(i, j) ? this.product(i, j) + this.biasOf(i, j) : -Infinity;
  }

  /** The scores of a query and the keys from `first` on, as `score` gives them, in the order of the keys. */
  private scores(i: number, first: number, end: number, found: Float64Array): void {
    const { query, key, width, how } = this;
    if (how.softcap || (how.score && how.score !== "dot")) {
      for (let j = first; j < end; j++) found[j - first] = this.score(i, j);
      return;
    }
    const own = i * width;
    for (let j = first; j < end; j++) {
      const other = j * width;
      let sum = 0, second = 0, third = 0, fourth = 0; // at once, which is faster than one after the other
      let d = 0;
      for (; d + 3 < width; d += 4) {
        sum += query![own + d] * key![other + d];
        second += query![own + d + 1] * key![other + d + 1];
        third += query![own + d + 2] * key![other + d + 2];
        fourth += query![own + d + 3] * key![other + d + 3];
      }
      for (; d < width; d++) sum += query![own + d] * key![other + d];
      found[j - first] = sum + second + third + fourth;
    }
    if (this.diagonals || this.bias) for (let j = first; j < end; j++) found[j - first] += this.biasOf(i, j);
    if (this.start || this.mask) for (let j = first; j < end; j++) if (!this.allowed(i, j)) found[j - first] = -Infinity;
  }

  /** The weights of a query, over all keys. */
  row(i: number): Float32Array {
    const kept = this.rows.get(i);
    if (kept) return kept;
    const n = this.keys;
    let row: Float32Array;
    if (this.weights) {
      row = Float32Array.from(this.weights.subarray(i * n, (i + 1) * n));
    } else {
      const scores = new Float64Array(n);
      if (this.how.normalizer === "uniform") { // which asks the mask alone
        for (let j = 0; j < n; j++) scores[j] = this.allowed(i, j) ? 0 : -Infinity;
      } else this.scores(i, 0, n, scores);
      row = Float32Array.from(this.normalized(scores));
    }
    if (this.rows.size * n > ROWS) this.rows.clear();
    this.rows.set(i, row);
    return row;
  }

  /** c = Σ α v, the output of the head at a query; keys without weight give nothing, whatever their value. */
  context(i: number): Float64Array {
    const { value, depth } = this, found = new Float64Array(depth);
    this.row(i).forEach((weight, j) => {
      if (weight) for (let d = 0; d < depth; d++) found[d] += weight * value![j * depth + d];
    });
    return found;
  }

  weight(i: number, j: number): number {
    if (this.weights) return this.weights[i * this.keys + j];
    if (!this.direct) return this.row(i)[j];
    const score = this.score(i, j), number = this.numbers![i];
    return score === -Infinity && !Number.isNaN(number) ? 0 : Math.exp(score - number); // a row is NaN as a whole
  }

  /** Whether a weight follows from its score and its row's number alone. */
  get direct(): boolean {
    return !this.weights && !!this.numbers && (this.how.normalizer === "softmax" || this.how.normalizer === "sink");
  }

  /**
   * The largest weight of each of `rows` × `columns` cells; 0 beyond the map, NaN where a weight is.
   *
   * A cell is of `tall` queries and `broad` keys, the first from query `top` and key `left` on; the keys of `without`
   * are left out.
   */
  largest(top: number, left: number, rows: number, columns: number, tall: number, broad: number, without?: ReadonlySet<number>): Float32Array {
    const hidden = without?.size ? without : null;
    const cells = new Float32Array(rows * columns);
    const bottom = Math.min(this.queries, top + rows * tall);
    const right = Math.min(this.keys, left + columns * broad);
    const { direct } = this;
    const scores = new Float64Array(Math.max(0, right - left));
    for (let i = top; i < bottom; i++) {
      const number = direct ? this.numbers![i] : 0;
      const skips = direct && !Number.isNaN(number); // a row is NaN as a whole
      const first = skips && this.start ? Math.max(left, this.start[i]) : left;
      const end = skips && this.end ? Math.min(right, this.end[i]) : right;
      if (direct) this.scores(i, first, end, scores);
      const weights = direct ? scores : this.weights ? this.weights.subarray(i * this.keys + first, i * this.keys + end) : this.row(i).subarray(first, end);
      const own = Math.floor((i - top) / tall) * columns;
      for (let j = first; j < end; ) {
        const column = Math.floor((j - left) / broad);
        const stop = Math.min(end, left + (column + 1) * broad);
        let most = direct ? -Infinity : 0; // of scores, which order a row as its weights do
        for (; j < stop; j++) if (!hidden?.has(j)) most = Math.max(most, weights[j - first]);
        if (direct) most = most === -Infinity && skips ? 0 : Math.exp(most - number);
        cells[own + column] = Math.max(cells[own + column], most);
      }
    }
    return cells;
  }

  private normalized(scores: Float64Array): Float64Array {
    const n = scores.length;
    const kind = this.how.normalizer ?? "softmax";
    const weights = new Float64Array(n);
    if (scores.some((score) => Number.isNaN(score) || score === Infinity)) return weights.fill(NaN);
    if (kind === "sigmoid") {
      for (let j = 0; j < n; j++) weights[j] = scores[j] === -Infinity ? 0 : 1 / (1 + Math.exp(-scores[j]));
      return weights;
    }
    if (kind === "entmax") {
      const alpha = this.how.alpha ?? 1.5;
      if (alpha > 1) return entmax(scores, alpha);
    }
    if (kind === "uniform" || kind === "share") {
      let sum = 0;
      for (let j = 0; j < n; j++) {
        if (scores[j] !== -Infinity) sum += weights[j] = kind === "uniform" ? 1 : Math.max(0, scores[j]);
      }
      for (let j = 0; j < n; j++) weights[j] = sum ? weights[j] / sum : 0;
      return weights;
    }
    let most = kind === "sink" ? this.sink : -Infinity;
    for (let j = 0; j < n; j++) most = Math.max(most, scores[j]);
    if (most === -Infinity) return weights;
    let sum = kind === "sink" ? Math.exp(this.sink - most) : 0;
    for (let j = 0; j < n; j++) sum += weights[j] = Math.exp(scores[j] - most);
    for (let j = 0; j < n; j++) weights[j] /= sum;
    return weights;
  }
}
