// What of a map fills a view, like a street map: the overview at once, exact tiles from a worker as they are there.
import type { Head } from "./attention";
import { picture } from "./colour";
import type { Grid, MapInfo, Reader } from "./document";
import { queue } from "./queue";

declare const WORKER: string;

export const SIDE = 128; // cells of a tile to a side
const KEPT = 240; // tiles, of at most 64 kB
const COST = 3e9; // multiplications that the exact tiles of a view may take: some seconds

export interface Box {
  top: number;
  left: number;
  height: number;
  width: number;
}

/** A tile that is asked for, of the map whose tensors begin with `prefix`. */
export interface Wish {
  name: string;
  prefix: string;
  head: number;
  how: MapInfo["how"];
  /** As `Head.largest` takes it: top, left, rows, columns, and what a cell is of. */
  part: [number, number, number, number, number, number];
  without: ReadonlySet<number>;
}

/** Cells of a part of a map, of `tall` queries and `broad` keys each. */
export class Tile {
  private seen: HTMLCanvasElement | null = null;
  private colours: Uint32Array | null = null;

  constructor(
    readonly cells: Float32Array, readonly rows: number, readonly columns: number, readonly box: Box,
    readonly tall: number, readonly broad: number,
  ) {}

  /** Its picture, one pixel a cell, in the colours that `inks` gave. */
  picture(colours: Uint32Array): HTMLCanvasElement {
    if (!this.seen || this.colours !== colours) {
      this.seen = picture(this.cells, this.rows, this.columns, colours);
      this.colours = colours;
    }
    return this.seen;
  }

  /** The largest weight in a view, and whether one is no number. */
  extent(view: Box): { most: number; nan: boolean } {
    const { box, tall, broad } = this;
    const bottom = Math.min(this.rows, Math.ceil((view.top + view.height - box.top) / tall));
    const stop = Math.min(this.columns, Math.ceil((view.left + view.width - box.left) / broad));
    const start = Math.max(0, Math.floor((view.left - box.left) / broad));
    let most = 0, nan = false;
    for (let r = Math.max(0, Math.floor((view.top - box.top) / tall)); r < bottom; r++) {
      for (let c = start; c < stop; c++) {
        const weight = this.cells[r * this.columns + c];
        if (weight > most) most = weight;
        if (weight !== weight) nan = true;
      }
    }
    return { most, nan };
  }
}

/** Cells joined, `down` × `across` at a time, as their largest weight. */
function joined(tile: Tile, down: number, across: number, hidden?: ReadonlySet<number>): Tile {
  const rows = Math.ceil(tile.rows / down), columns = Math.ceil(tile.columns / across);
  const cells = new Float32Array(rows * columns);
  for (let r = 0; r < tile.rows; r++) {
    for (let c = 0; c < tile.columns; c++) {
      if (hidden?.has(c)) continue;
      const n = Math.floor(r / down) * columns + Math.floor(c / across);
      cells[n] = Math.max(cells[n], tile.cells[r * tile.columns + c]); // NaN stays
    }
  }
  const tall = tile.tall * down, broad = tile.broad * across;
  return new Tile(cells, rows, columns, { top: 0, left: 0, height: rows * tall, width: columns * broad }, tall, broad);
}

let worker: Worker | null | undefined; // null where a page's policy forbids workers
let given: ArrayBuffer | null = null;
let made = 0;

function workerOf(buffer: ArrayBuffer): Worker | null {
  if (worker === null) return null;
  try {
    worker ??= new Worker(URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" })));
  } catch {
    return (worker = null);
  }
  if (given !== buffer) worker.postMessage({ buffer });
  given = buffer;
  return worker;
}

/** The power of two of weights that a cell has, for it to take a pixel at least. */
const step = (weights: number) => 2 ** Math.max(0, Math.ceil(Math.log2(weights)));
const meets = (a: Box, b: Box) => a.top < b.top + b.height && b.top < a.top + a.height && a.left < b.left + b.width && b.left < a.left + a.width;

/** The tiles of a head of a map; the keys of `without` are left out. */
export class Tiles {
  /** Called when a tile has come. */
  changed: () => void = () => {};
  readonly overview: Tile;
  private number = ++made;
  readonly pooled: boolean;
  private kept = new Map<string, Tile>();
  private smaller = new Map<string, Tile>();
  private last = "";
  private worker: Worker | null = null;
  private ask: ((wishes: Wish[]) => void) | null = null;

  constructor(private reader: Reader, private map: MapInfo, private head: number, private without: ReadonlySet<number>) {
    const { queries, keys } = map.how;
    const box = { top: 0, left: 0, height: queries, width: keys };
    const pool = reader.given(map, "pool", head);
    this.pooled = !!pool;
    if (pool) {
      const [rows, columns] = reader.tensors.get(`${map.tensors}.pool`)!.shape.slice(-2);
      const tall = Math.ceil(queries / rows), broad = Math.ceil(keys / columns);
      const whole = new Tile(pool, rows, columns, { ...box, height: rows * tall, width: columns * broad }, tall, broad);
      // a cell that has one of those keys is not shown: what else it has is not known
      this.overview = without.size ? joined(whole, 1, 1, new Set(Array.from(without, (j) => Math.floor(j / broad)))) : whole;
    } else {
      this.overview = new Tile(this.one.largest(0, 0, queries, keys, 1, 1, without), queries, keys, box, 1, 1);
    }
  }

  private get one(): Head {
    return this.reader.head(this.map, this.head); // read when it is asked for: the overview needs none of it
  }

  /**
   * What a view of `high` × `wide` pixels is drawn from, each over those before it, and how many exact tiles are to come.
   *
   * A cell of an exact tile takes one to two pixels, or is one weight. Those that are missing are asked for, and take
   * the place of all that was asked for before.
   */
  shown(view: Box, high: number, wide: number): { tiles: Tile[]; missing: number } {
    const tall = step(view.height / high), broad = step(view.width / wide);
    const needed = this.needed(view, tall, broad);
    const missing = needed.filter((wish) => !this.kept.has(wish.name));
    const there = needed.flatMap(({ name }) => this.kept.get(name) ?? []);
    for (const { name } of needed) { // those last used are kept longest
      const tile = this.kept.get(name);
      if (tile && this.kept.delete(name)) this.kept.set(name, tile);
    }
    this.request(missing);
    if (needed.length && !missing.length) return { tiles: there, missing: 0 };
    const coarser = [...this.kept.values()].filter((tile) => tile.tall * tile.broad > tall * broad && meets(tile.box, view));
    coarser.sort((a, b) => b.tall * b.broad - a.tall * a.broad);
    return { tiles: [this.atLeast(tall, broad), ...coarser, ...there], missing: missing.length };
  }

  /** The overview, in cells of at least `tall` queries and `broad` keys, so that none is lost where it is drawn small. */
  atLeast(tall: number, broad: number): Tile {
    const down = step(tall / this.overview.tall), across = step(broad / this.overview.broad);
    if (down * across === 1) return this.overview;
    const name = `${down},${across}`;
    let found = this.smaller.get(name);
    if (!found) this.smaller.set(name, (found = joined(this.overview, down, across)));
    return found;
  }

  /** The exact tiles of a view, from its middle outward; none where the overview is as fine, or they would take too long. */
  private needed(view: Box, tall: number, broad: number): Wish[] {
    const { map, overview } = this;
    if (!this.pooled || (tall >= overview.tall && broad >= overview.broad)) return [];
    if (this.dear(view)) return [];
    const whole = this.whole;
    const height = SIDE * tall, width = SIDE * broad;
    const found: [number, Wish][] = [];
    for (let y = Math.floor(view.top / height); y * height < view.top + view.height; y++) {
      for (let x = Math.floor(view.left / width); x * width < view.left + view.width; x++) {
        const top = y * height, left = x * width;
        const away = Math.hypot((top + height / 2 - view.top) / view.height - 0.5, (left + width / 2 - view.left) / view.width - 0.5);
        found.push([whole ? y : away, {
          name: [this.number, tall, broad, top, left].join(), prefix: map.tensors, head: this.head, how: map.how,
          part: [top, left, Math.min(SIDE, Math.ceil((map.how.queries - top) / tall)), Math.min(SIDE, Math.ceil((map.how.keys - left) / broad)), tall, broad],
          without: this.without,
        }]);
      }
    }
    return found.sort((a, b) => a[0] - b[0]).map(([, wish]) => wish);
  }

  /** Whether weights are computed by whole rows, once for all of their tiles. */
  get whole(): boolean {
    return !this.one.weights && !this.one.direct;
  }

  /** By how much the exact tiles of a view would take too long; 0 where they do not. */
  private dear(view: Box): number {
    const cost = view.height * (this.whole ? this.map.how.keys : view.width) * (this.one.width || 1);
    return cost > COST ? cost / COST : 0;
  }

  /** How many queries and keys a view may have for exact tiles, where this one is drawn from coarser cells; else null. */
  bound(view: Box, high: number, wide: number): { queries: number; keys: number } | null {
    const { overview, map } = this;
    if (!this.pooled || (step(view.height / high) >= overview.tall && step(view.width / wide) >= overview.broad)) return null;
    const dear = this.dear(view);
    if (!dear) return null;
    return this.whole ? { queries: Math.floor(view.height / dear), keys: map.how.keys }
      : { queries: Math.floor(view.height / Math.sqrt(dear)), keys: Math.floor(view.width / Math.sqrt(dear)) };
  }

  private request(wishes: Wish[]) {
    const names = wishes.map(({ name }) => name).join(" ");
    if (names === this.last) return;
    this.last = names;
    if (!this.ask) {
      this.worker = workerOf(this.reader.tensors.bytes);
      this.worker?.addEventListener("message", this.listen);
      this.worker?.addEventListener("error", this.failed);
      this.ask = this.worker ? (wishes) => this.worker!.postMessage({ wishes }) : this.here();
    }
    this.ask(wishes);
  }

  /** Computes tiles on the page itself, one at a time. */
  private here(): (wishes: Wish[]) => void {
    return queue((wish) => this.keep(wish, this.one.largest(...wish.part, wish.without)));
  }

  /** A worker that a policy forbids may say so only after it was made. */
  private failed = () => {
    worker = null;
    this.ask = this.here();
    this.last = "";
    this.changed();
  };

  private listen = (event: MessageEvent<{ wish: Wish; cells: Float32Array }>) => this.keep(event.data.wish, event.data.cells);

  private keep({ name, part }: Wish, cells: Float32Array) {
    if (!name.startsWith(`${this.number},`)) return; // of other tiles
    const [top, left, rows, columns, tall, broad] = part;
    if (this.kept.size >= KEPT) this.kept.delete(this.kept.keys().next().value!);
    this.kept.set(name, new Tile(cells, rows, columns, { top, left, height: rows * tall, width: columns * broad }, tall, broad));
    this.changed();
  }

  close() {
    this.worker?.removeEventListener("message", this.listen);
    this.worker?.removeEventListener("error", this.failed);
    this.ask?.([]);
    this.changed = () => {};
  }
}

/** A whole map in at most `most` cells to a side: of each the largest weight, the mean over the heads. */
export function pooled(reader: Reader, map: MapInfo, heads: number[], most: number): Grid {
  const { queries, keys } = map.how;
  const tiles = heads.map((head) => new Tiles(reader, map, head, new Set()).atLeast(queries / most, keys / most));
  const [{ rows, columns, tall, broad }] = tiles;
  const cells = new Float32Array(rows * columns).map((_, n) => tiles.reduce((sum, tile) => sum + tile.cells[n], 0) / heads.length);
  const axis = (count: number, of: number, all: number) => ({
    names: Array.from({ length: count }, (_, n) => (of === 1 ? String(n) : `${n * of}–${Math.min(all, (n + 1) * of) - 1}`)), groups: null,
  });
  return { rows: axis(rows, tall, queries), columns: axis(columns, broad, keys), top: 0, left: 0, cells, allowed: [], largest: cells.reduce((a, b) => (b > a ? b : a), 0), nan: cells.some(Number.isNaN) };
}
