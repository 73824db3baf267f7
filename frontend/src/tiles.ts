// What of a map fills a view: the overview at once, exact cells from a worker as soon as they are there.
import type { MapInfo, Reader } from "./document";

declare const WORKER: string;

const EXACT = 3_000_000; // weights that a view may have for its cells to be computed

export interface Box {
  top: number;
  left: number;
  height: number;
  width: number;
}

export interface Cells {
  cells: Float32Array;
  rows: number;
  columns: number;
  exact: boolean;
  /** What of the map the cells are of. */
  box: Box;
}

let shared: { worker: Worker; given: ArrayBuffer | null } | null = null;

function worker(buffer: ArrayBuffer): Worker | null {
  try {
    if (!shared) {
      const address = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
      shared = { worker: new Worker(address), given: null };
    }
    if (shared.given !== buffer) {
      shared.worker.postMessage({ buffer });
      shared.given = buffer;
    }
    return shared.worker;
  } catch {
    return null; // a page's policy may forbid workers: the cells are then computed here
  }
}

let last = 0;

export class Tiles {
  changed: () => void = () => {};
  private asked = "";
  private found = new Map<string, Cells>();
  private listener: ((event: MessageEvent) => void) | null = null;
  private worker: Worker | null;

  constructor(private reader: Reader, private map: MapInfo, private head: number) {
    this.worker = worker(reader.tensors.bytes);
  }

  /** The cells of a view: exact ones where they are there or can be had at once, else from the overview. */
  cells(view: Box, rows: number, columns: number, coarse = false): Cells {
    const { map } = this;
    const high = Math.min(rows, Math.ceil(view.height)), wide = Math.min(columns, Math.ceil(view.width));
    const pool = this.reader.tensors.get(`${map.tensors}.pool`);
    const weights = view.height * view.width;
    if (!pool) {
      if (weights <= 70_000) return { cells: this.exact(view, high, wide), rows: high, columns: wide, exact: true, box: view };
    } else if (coarse) {
      return this.overview(view, high, wide);
    }
    const cost = weights * (this.reader.head(map, this.head).width || 1);
    if (weights > EXACT || cost > EXACT * 200) return pool ? this.overview(view, high, wide) : { cells: this.exact(view, high, wide), rows: high, columns: wide, exact: true, box: view };
    const name = [view.top, view.left, view.height, view.width, high, wide].map((x) => x.toFixed(2)).join();
    const known = this.found.get(name);
    if (known) return known;
    this.request(name, view, high, wide);
    return this.found.get(name) ?? (pool ? this.overview(view, high, wide) : { cells: new Float32Array(high * wide), rows: high, columns: wide, exact: false, box: view });
  }

  private exact(view: Box, rows: number, columns: number): Float32Array {
    return this.reader.head(this.map, this.head).window(view.top, view.left, view.height, view.width, rows, columns);
  }

  private request(name: string, view: Box, rows: number, columns: number) {
    if (this.asked === name) return;
    this.asked = name;
    const keep = (cells: Float32Array) => {
      if (this.found.size > 24) this.found.delete(this.found.keys().next().value!);
      this.found.set(name, { cells, rows, columns, exact: true, box: view });
    };
    if (!this.worker) return keep(this.exact(view, rows, columns));
    const id = ++last;
    if (this.listener) this.worker.removeEventListener("message", this.listener);
    this.listener = (event) => {
      if (event.data.id !== id) return;
      keep(event.data.cells);
      this.changed();
    };
    this.worker.addEventListener("message", this.listener);
    this.worker.postMessage({ id, prefix: this.map.tensors, head: this.head, how: this.map.how, box: [view.top, view.left, view.height, view.width], cells: [rows, columns] });
  }

  /** The overview's own cells in a view, where they are fewer than its pixels; else the largest that a cell touches. */
  private overview(view: Box, rows: number, columns: number): Cells {
    const pool = this.reader.tensors.get(`${this.map.tensors}.pool`)!;
    const [high, wide] = pool.shape.slice(-2);
    const given = this.reader.given(this.map, "pool", this.head)!;
    const tall = Math.ceil(this.map.how.queries / high), broad = Math.ceil(this.map.how.keys / wide);
    const top = Math.floor(view.top / tall), bottom = Math.min(high, Math.ceil((view.top + view.height) / tall));
    const start = Math.floor(view.left / broad), stop = Math.min(wide, Math.ceil((view.left + view.width) / broad));
    if (bottom - top <= rows && stop - start <= columns) {
      const own = new Float32Array((bottom - top) * (stop - start));
      for (let i = top; i < bottom; i++) own.set(given.subarray(i * wide + start, i * wide + stop), (i - top) * (stop - start));
      return { cells: own, rows: bottom - top, columns: stop - start, exact: false, box: { top: top * tall, left: start * broad, height: (bottom - top) * tall, width: (stop - start) * broad } };
    }
    const cells = new Float32Array(rows * columns);
    for (let r = 0; r < rows; r++) {
      const first = Math.floor((view.top + (r * view.height) / rows) / tall);
      const end = Math.min(high, Math.max(first + 1, Math.ceil((view.top + ((r + 1) * view.height) / rows) / tall)));
      for (let c = 0; c < columns; c++) {
        const left = Math.floor((view.left + (c * view.width) / columns) / broad);
        const right = Math.min(wide, Math.max(left + 1, Math.ceil((view.left + ((c + 1) * view.width) / columns) / broad)));
        let most = 0;
        for (let i = first; i < end; i++) for (let j = left; j < right; j++) most = Math.max(most, given[i * wide + j]);
        cells[r * columns + c] = most;
      }
    }
    return { cells, rows, columns, exact: false, box: view };
  }

  close() {
    if (this.listener && this.worker) this.worker.removeEventListener("message", this.listener);
  }
}
