// Reads safetensors: a length, a JSON header, then little-endian numbers.

export interface Tensor {
  shape: number[];
  data: Float32Array | Int32Array | Uint8Array;
}

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** IEEE half precision to single. */
export function halfToFloat(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const exponent = (h >> 10) & 0x1f;
  const fraction = h & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

let halves: Float32Array | null = null;

function halfTable(): Float32Array {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let h = 0; h < 65536; h++) halves[h] = halfToFloat(h);
  }
  return halves;
}

function numbers(kind: string, buffer: ArrayBuffer, start: number, end: number): Tensor["data"] {
  const raw = buffer.slice(start, end); // aligned, which a view into the file need not be
  switch (kind) {
    case "F32":
      return new Float32Array(raw);
    case "F64":
      return Float32Array.from(new Float64Array(raw));
    case "I32":
      return new Int32Array(raw);
    case "I64":
      return Int32Array.from(new BigInt64Array(raw), Number);
    case "U8":
    case "BOOL":
      return new Uint8Array(raw);
    case "F16": {
      const table = halfTable();
      const bits = new Uint16Array(raw);
      const wide = new Float32Array(bits.length);
      for (let i = 0; i < bits.length; i++) wide[i] = table[bits[i]];
      return wide;
    }
    default:
      throw new Error(`a tensor of type ${kind} cannot be read here`);
  }
}

/** The tensors of a file, each converted when it is first asked for. */
export class Tensors {
  private entries: Record<string, Entry>;
  private start: number;
  private read = new Map<string, Tensor>();
  metadata: Record<string, string>;

  get bytes(): ArrayBuffer {
    return this.buffer;
  }

  constructor(private buffer: ArrayBuffer) {
    const view = new DataView(buffer);
    const length = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    this.metadata = header.__metadata__ ?? {};
    delete header.__metadata__;
    this.entries = header;
    this.start = 8 + length;
  }

  names(): string[] {
    return Object.keys(this.entries);
  }

  get(name: string): Tensor | undefined {
    const entry = this.entries[name];
    if (!entry) return undefined;
    let tensor = this.read.get(name);
    if (!tensor) {
      const [first, end] = entry.data_offsets;
      tensor = { shape: entry.shape, data: numbers(entry.dtype, this.buffer, this.start + first, this.start + end) };
      this.read.set(name, tensor);
    }
    return tensor;
  }
}
