import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { entmax } from "../src/attention";
import { entropy, siteName } from "../src/document";
import { escape, toCsv, toNpz } from "../src/export";
import { halfToFloat, Tensors } from "../src/safetensors";
import { groups, likeness } from "../src/screens/heads";
import { fit, sinks } from "../src/screens/long";
import { flags } from "../src/screens/align";

const grid = (rows: string[], columns: string[], cells: number[]) => ({
  rows: { names: rows, groups: null }, columns: { names: columns, groups: null }, cells: Float32Array.from(cells), largest: Math.max(...cells), nan: cells.some(Number.isNaN),
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
  it("names words that are hardly read, and far jumps", () => {
    const found = flags(grid(["the", "cat"], ["le", "gros", "chat"], [0.95, 0, 0.05, 0, 0.05, 0.95]), true);
    expect(found).toEqual(["“gros” gets little attention"]);
  });
  it("puts sites in words", () => {
    expect(siteName("decoder.layers.1.cross")).toBe("decoder layer 1 · cross-attention");
    expect(siteName("decoder.cross")).toBe("decoder cross-attention");
    expect(siteName("transformer.h.3.attn")).toBe("transformer layer 3 · attention");
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
