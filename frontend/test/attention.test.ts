import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { entmax, Head, type How } from "../src/attention";
import { colour, inks, LIGHT } from "../src/colour";
import { entropy, type MapInfo, Reader, roles, rolesOfLong, type Run, siteName } from "../src/document";
import { escape, toCsv, toNpz } from "../src/export";
import { queue } from "../src/queue";
import { halfToFloat, type Tensor, Tensors } from "../src/safetensors";
import { groups, likeness } from "../src/screens/heads";
import { fit, sinks } from "../src/screens/long";
import { within } from "../src/state";
import { pooled, Tiles } from "../src/tiles";
import { minus, number, toldApart } from "../src/parts";
import { evenly, flags } from "../src/screens/align";

const grid = (rows: string[], columns: string[], cells: number[]) => ({
  rows: { names: rows, groups: null }, columns: { names: columns, groups: null }, top: 0, left: 0, allowed: rows.map(() => columns.length), cells: Float32Array.from(cells), largest: Math.max(...cells), nan: cells.some(Number.isNaN),
});

describe("numbers", () => {
  it("reads half precision", () => {
    expect([0x3c00, 0xc000, 0x0001, 0x7c00, 0x3555].map(halfToFloat)).toEqual([1, -2, 2 ** -24, Infinity, 0.333251953125]);
  });
  it("reads safetensors that are not aligned", () => {
    const header = JSON.stringify({ a: { dtype: "F32", shape: [2], data_offsets: [0, 8] }, b: { dtype: "BOOL", shape: [1], data_offsets: [8, 9] } });
    const bytes = new Uint8Array(8 + header.length + 9);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
    bytes.set(new TextEncoder().encode(header), 8);
    new DataView(bytes.buffer).setFloat32(8 + header.length + 4, 2.5, true);
    bytes[8 + header.length + 8] = 1;
    const tensors = new Tensors(bytes.buffer);
    expect([...tensors.get("a")!.data]).toEqual([0, 2.5]);
    expect([...tensors.get("b")!.data]).toEqual([1]);
    expect(tensors.get("c")).toBeUndefined();
  });
  it("sums entmax to one and gives sparsemax its closed form", () => {
    expect([...entmax(Float64Array.from([1, 0.5, -3]), 2)].map((x) => +x.toFixed(6))).toEqual([0.75, 0.25, 0]);
    fc.assert(fc.property(fc.array(fc.double({ min: -9, max: 9, noNaN: true }), { minLength: 1, maxLength: 12 }), fc.constantFrom(1.2, 1.5, 2), (scores, alpha) => {
      const weights = entmax(Float64Array.from(scores), alpha);
      expect(weights.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 9);
    }));
  });
  it("has no entropy in one key, and ln n in n equal ones", () => {
    expect(entropy([0, 1, 0])).toBe(0);
    expect(entropy([2, 2, 2])).toBeCloseTo(Math.log(3), 12);
    expect(entropy([0, 0])).toBe(0);
  });
});

describe("cells of a long map", () => {
  const [T, S, D] = [19, 23, 5];
  const noise = (n: number, from = 1) => Float32Array.from({ length: n }, (_, i) => 2 * Math.sin(12.9898 * (i + from)));
  const head = (how: How, numbers: boolean, poison = false) => {
    const parts: Record<string, Tensor> = {
      "m.query": { shape: [T, D], data: noise(T * D) }, "m.key": { shape: [S, D], data: noise(S * D, 700) },
      "m.mask.start": { shape: [T], data: new Int32Array(T).map((_, i) => Math.max(0, i - 7)) }, "m.mask.end": { shape: [T], data: new Int32Array(T).map((_, i) => (i === 4 ? 0 : Math.min(S, i + 3))) },
    };
    if (poison) parts["m.query"].data[11 * D] = NaN;
    const made = () => new Head({ get: (name: string) => parts[name] } as unknown as Tensors, "m", 0, 1, T, S, how);
    if (numbers) {
      const one = made();
      parts["m.numbers"] = { shape: [T], data: Float32Array.from({ length: T }, (_, i) => Math.log(Array.from({ length: S }, (_, j) => Math.exp(one.score(i, j))).reduce((a, b) => a + b, 0))) };
    }
    return made();
  };
  it.each<[string, How, boolean, boolean]>([
    ["from rows' numbers", { normalizer: "softmax" }, true, false], ["from whole rows", { normalizer: "entmax", alpha: 1.5 }, false, false],
    ["of a row of NaN", { normalizer: "softmax" }, true, true], ["of another score", { score: "distance", width: 2 }, true, false],
  ])("are the largest weights, %s", (_, how, numbers, poison) => {
    const one = head(how, numbers, poison), without = new Set([6, 13]);
    const [top, left, rows, columns, tall, broad] = [3, 2, 6, 5, 3, 5];
    const found = one.largest(top, left, rows, columns, tall, broad, without);
    const wanted = Array.from({ length: rows * columns }, (_, n) => {
      let most = 0;
      for (let i = 0; i < T; i++) for (let j = 0; j < S; j++) {
        if (i < top || Math.floor((i - top) / tall) !== Math.floor(n / columns) || j < left || Math.floor((j - left) / broad) !== n % columns || without.has(j)) continue;
        most = Math.max(most, one.row(i)[j]);
      }
      return most;
    });
    expect(wanted.some((x) => x > 0.1)).toBe(true);
    expect(wanted.some(Number.isNaN)).toBe(poison);
    wanted.forEach((x, n) => (Number.isNaN(x) ? expect(found[n]).toBeNaN() : expect(found[n]).toBeCloseTo(x, 5)));
  });
  it("have the colour of the scale, and one of their own where they are no number", () => {
    const colours = inks(LIGHT, (x) => x / 0.7), bits = new Uint32Array(1), weight = new Float32Array(bits.buffer);
    const seen = (x: number) => { weight[0] = x; const p = colours[bits[0] >>> 14]; return [p & 255, (p >> 8) & 255, (p >> 16) & 255]; };
    for (let n = 0; n <= 100; n++) seen(n / 100).forEach((part, c) => expect(Math.abs(part - colour(LIGHT.weights, n / 100, 0.7)[c])).toBeLessThanOrEqual(3));
    expect(seen(NaN)).toEqual(LIGHT.none);
    expect(seen(-0.5)).toEqual(seen(0));
  });
  it.each<[How, number | null]>([[{ normalizer: "softmax" }, null], [{ normalizer: "entmax", alpha: 2 }, 20011]])("are exact in views whose cost has a bound: %o", (how, keys) => {
    const n = 20011, dim = 67, cells = 1001;
    const tensors: Record<string, Tensor> = { "m.query": { shape: [n, dim], data: new Float32Array(n * dim) }, "m.key": { shape: [n, dim], data: new Float32Array(n * dim) }, "m.pool": { shape: [1, cells, cells], data: new Float32Array(cells * cells) } };
    if (how.normalizer === "softmax") tensors["m.numbers"] = { shape: [n], data: new Float32Array(n) };
    const map = { site: "s", tensors: "m", how: { ...how, heads: 1, queries: n, keys: n }, rows: null, columns: null } as MapInfo;
    const tiles = new Tiles(new Reader({ get: (name: string) => tensors[name] } as unknown as Tensors), map, 0, new Set());
    const view = (size: number) => tiles.bound({ top: 0, left: 0, height: size, width: size }, 700, 700);
    expect(view(n)).toBe(null); // the overview has as many cells as there are pixels
    const { queries, keys: wide } = view(n / 2)!;
    expect(queries * (keys ?? wide) * dim).toBeLessThanOrEqual(3e9);
    expect((queries + 1) * (keys ?? wide + 1) * dim).toBeGreaterThan(3e9);
    expect(wide).toBe(keys ?? queries);
    expect(view(queries)).toBe(null);
    expect(view(queries + 1)).not.toBe(null);
  });
  it("are computed in order, and no longer wanted ones are not", async () => {
    const done: number[] = [];
    await new Promise<void>((end) => {
      const ask = queue<number>((n) => {
        done.push(n);
        if (n === 2) ask([7, 5]); // while 3 still waits
        if (n === 5) end();
      });
      ask([2, 3]);
    });
    expect(done).toEqual([2, 7, 5]);
  });
});

describe("views", () => {
  it("keeps a view inside its map", () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 40000 }), fc.integer({ min: 1, max: 40000 }), fc.double({ min: -1e6, max: 1e6, noNaN: true }), fc.double({ min: 0, max: 1e6, noNaN: true }), (queries, keys, at, size) => {
      const view = fit({ top: at, left: at, height: size, width: size }, queries, keys);
      expect(view.top).toBeGreaterThanOrEqual(0);
      expect(view.top + view.height).toBeLessThanOrEqual(queries + 1e-6);
      expect(view.left + view.width).toBeLessThanOrEqual(keys + 1e-6);
      expect(view.height).toBeGreaterThan(0);
    }));
  });
  it("finds keys that take a large share of all attention", () => {
    expect([...sinks([9, 0.5, 0.5], 10)]).toEqual([0]);
  });
  it("groups heads that are alike", () => {
    const a = Float32Array.from([1, 0, 0, 1]), b = Float32Array.from([0, 1, 1, 0]);
    expect(groups([a, b, a], likeness).map((group) => group.length)).toEqual([2, 1]);
    expect(likeness(a, Float32Array.from([1]))).toBe(0);
  });
  it("calls a head nearly uniform before it finds a pattern in its weights", () => {
    const even = grid(["a", "b", "c"], ["v", "w", "x", "y", "z"], Array.from({ length: 15 }, (_, n) => 0.2 + 0.02 * ((n % 5) - 2)));
    expect(roles(even, false).name).toBe("nearly uniform"); // three keys of five are near any diagonal
    const first = grid(["a", "b", "c"], ["v", "w", "x", "y", "z"], Array.from({ length: 15 }, (_, n) => (n % 5 ? 0.13 : 0.48)));
    expect(roles(first, false).name).toBe("first token");
    const spread = grid(["a", "b", "c"], Array.from("pqrstuvwxyz"), Array.from({ length: 33 }, (_, n) => [0.3, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07][(5 * n) % 11]));
    expect(roles(spread, true).name).toBe("no clear pattern"); // 92 % of the greatest entropy
  });
  it.each(["by their mask", "without one"])("measures rows of a causal map by the keys they may attend to, known %s", (known) => {
    const n = 7, weights = Float32Array.from({ length: n * n }, (_, at) => (at % n <= Math.floor(at / n) ? 1 / (Math.floor(at / n) + 1) : 0));
    const tensors: Record<string, Tensor> = { "m.weights": { shape: [n, n], data: weights } };
    if (known === "by their mask") Object.assign(tensors, { "m.mask.start": { shape: [n], data: new Int32Array(n) }, "m.mask.end": { shape: [n], data: new Int32Array(n).map((_, i) => i + 1) } });
    const map = { site: "s", tensors: "m", how: { heads: 1, queries: n, keys: n }, rows: "text", columns: "text" } as MapInfo;
    const read = (byWords: boolean) => new Reader({ get: (name: string) => tensors[name] } as unknown as Tensors).grid({
      label: "", maps: [map], sequences: { text: Array.from("abcdefg") }, words: { text: { texts: ["ab", "cde", "fg"], owner: [0, 0, 1, 1, 1, 2, 2] } },
    } as Run, map, [0], byWords);
    expect(read(false).allowed).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(read(true).allowed).toEqual([1, 2, 3]);
    expect(roles(read(false), true).name).toBe("nearly uniform");
    expect(evenly(read(false))).toBe("Nearly uniform: every weight is close to one over the number of keys that its row may attend to.");
  });
  it("gives a part of a map the numbers of the whole, by tokens and by words", () => {
    const n = 60, weights = Float32Array.from({ length: n * n }, (_, at) => 1 + Math.sin(7.3 * at)), row = (i: number) => weights.subarray(i * n, (i + 1) * n);
    for (let i = 0; i < n; i++) { const sum = row(i).reduce((a, b) => a + b, 0); row(i).forEach((x, j) => (weights[i * n + j] = x / sum)); }
    const map = { site: "s", tensors: "m", how: { heads: 1, queries: n, keys: n }, rows: "text", columns: "text" } as MapInfo;
    const run = { label: "", maps: [map], sequences: { text: Array.from({ length: n }, (_, i) => `t${i}`) }, words: { text: { texts: Array.from({ length: 29 }, (_, i) => `w${i}`), owner: Array.from({ length: n }, (_, i) => (i < 58 ? i >> 1 : -1)) } } } as unknown as Run;
    const reader = new Reader({ get: (name: string) => (name === "m.weights" ? { shape: [n, n], data: weights } : undefined) } as unknown as Tensors);
    for (const byWords of [false, true]) {
      const whole = reader.grid(run, map, [0], byWords), side = whole.columns.names.length;
      const part = reader.grid(run, map, [0], byWords, [19, -5, 7, 11]);
      expect([part.top, part.left, part.rows.names[0], part.columns.names[10]]).toEqual([19, 0, byWords ? "w19" : "t19", byWords ? "w10" : "t10"]);
      part.cells.forEach((x, at) => expect(x).toBeCloseTo(whole.cells[(19 + Math.floor(at / 11)) * side + (at % 11)], 6));
      expect(reader.grid(run, map, [0], byWords, [999, 999, 7, 11]).left).toBe(side - 11);
    }
    expect(within({ ...reader.grid(run, map, [0], false, [20, 30, 7, 11]) }, { row: 22, column: 41 })).toEqual({ row: 2, column: null });
  });
  it.each<[string, (i: number, j: number) => number]>([
    ["previous token", (i, j) => +(j === Math.max(0, i - 1))], ["same token", (i, j) => +(i === j)], ["first token", (_, j) => +(j === 0)],
    ["nearly uniform", () => 1 / 400], ["no clear pattern", (i, j) => (j % 40 === i % 40 ? 0.1 : 0)],
  ])("knows a head of a long map by its rows: %s", (name, weight) => {
    const n = 400, map = { site: "s", tensors: "m", how: { heads: 1, queries: n, keys: n } } as MapInfo;
    const data = Float32Array.from({ length: n * n }, (_, at) => weight(Math.floor(at / n), at % n));
    const reader = new Reader({ get: (part: string) => (part === "m.weights" ? { shape: [n, n], data } : undefined) } as unknown as Tensors);
    expect(rolesOfLong(reader, map, 0, true).name).toBe(name);
    const found = pooled(reader, map, [0], 64);
    expect([found.rows.names.length, found.rows.names[1], found.rows.names.at(-1)]).toEqual([50, "8–15", "392–399"]);
    for (const [r, c] of [[0, 0], [3, 2], [49, 48]]) {
      let most = 0;
      for (let i = 8 * r; i < 8 * r + 8; i++) for (let j = 8 * c; j < 8 * c + 8; j++) most = Math.max(most, data[i * n + j]);
      expect(found.cells[r * 50 + c]).toBe(most);
    }
  });
  it("names words that are hardly read, and far jumps", () => {
    const found = flags(grid(["the", "cat"], ["le", "gros", "chat"], [0.95, 0, 0.05, 0, 0.05, 0.95]), true);
    expect(found).toEqual(["“gros” gets little attention"]);
  });
  it("puts sites in words", () => {
    expect(siteName("decoder.layers.1.cross")).toBe("decoder layer 1 · cross-attention");
    expect(siteName("decoder.cross")).toBe("decoder cross-attention");
    expect(siteName("transformer.h.3.attn")).toBe("transformer layer 3 · attention");
    expect(siteName("encoder.layer.2.attention.self")).toBe("encoder layer 2 · self-attention"); // BERT
    expect(siteName("decoder.layers.0.multihead_attn")).toBe("decoder layer 0 · cross-attention"); // torch
    expect(siteName("decoder.block.4.layer.1.EncDecAttention")).toBe("decoder layer 4 · cross-attention"); // T5
  });
  it("says where a map has only equal weights", () => {
    expect(evenly(grid(["a", "b"], ["x", "y", "z"], [0.33, 0.34, 0.33, 0.34, 0.33, 0.33]))).toBe("Nearly uniform: every weight is close to 1/3 = 0.333.");
    expect(evenly(grid(["a", "b"], ["x", "y", "z"], [0.33, 0.34, 0.33, 0.8, 0.1, 0.1]))).toBe("");
  });
});

describe("files", () => {
  it("quotes a table, and disarms what a spreadsheet would compute", () => {
    expect(toCsv(grid(["=1+1"], ["a,b", 'c"d'], [0.5, 0.25]))).toBe(',"a,b","c""d"\n\'=1+1,0.5000000,0.2500000\n');
  });
  it("escapes what XML would read", () => {
    expect(escape("<a & \"b\"\u0000>")).toBe("&lt;a &amp; &quot;b&quot;\ufffd&gt;");
  });
  it("writes a ZIP archive whose directory points at its files", () => {
    const bytes = toNpz({ a: { shape: [2, 2], data: Float32Array.from([1, 2, 3, 4]) } });
    const view = new DataView(bytes.buffer);
    expect(view.getUint32(0, true)).toBe(0x04034b50);
    expect(view.getUint32(view.getUint32(bytes.length - 6, true), true)).toBe(0x02014b50);
  });
});

describe("names and numbers", () => {
  it("has no minus before a zero, and a typographic one before any other number", () => {
    expect(["-0.00", "-0", "0.00", "-0.01", "-10.00"].map(minus)).toEqual(["0.00", "0", "0.00", "−0.01", "−10.00"]);
    expect(number(-0.0004)).toBe("0.000");
    expect(number(-0.0006)).toBe("−0.001");
  });

  it("numbers the keys that have one name, and shows white space", () => {
    expect(toldApart(["o", "r", " ", "o", "\n"])).toEqual(["o (key 1)", "r", "␣", "o (key 4)", "↵"]);
  });
});
