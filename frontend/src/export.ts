// What can be taken along: an SVG whose text stays text, a PNG, a table, numbers for numpy.
import { colour, css, type Scale } from "./colour";
import type { Grid } from "./document";

export function escape(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "\ufffd").replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

function clip(text: string, most = 28): string {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

/** A map as SVG. */
export function toSvg(grid: Grid, title: string, scale: Scale, ink: string, paper: string): string {
  const rows = grid.rows.names.length, columns = grid.columns.names.length;
  const cell = Math.max(4, Math.min(26, 1400 / Math.max(rows, columns)));
  const longest = (names: string[]) => Math.min(28, names.reduce((n, name) => Math.max(n, [...name].length), 1)) * 7.4 + 14;
  const left = longest(grid.rows.names), top = longest(grid.columns.names) * 0.72 + 44;
  const width = left + columns * cell + 120, height = top + rows * cell + 56;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width.toFixed(0)} ${height.toFixed(0)}" width="${width.toFixed(0)}" height="${height.toFixed(0)}" font-family="system-ui, sans-serif" font-size="13" fill="${ink}">`,
    `<title>${escape(title)}</title><rect width="100%" height="100%" fill="${paper}"/><text x="${left}" y="22" font-size="15" font-weight="600">${escape(clip(title, 90))}</text>`,
  ];
  const every = cell >= 11 ? 1 : Math.ceil(14 / cell);
  grid.columns.names.forEach((name, c) => {
    if (c % every === 0) parts.push(`<text transform="translate(${(left + (c + 0.6) * cell).toFixed(1)} ${(top - 6).toFixed(1)}) rotate(-42)">${escape(clip(name))}</text>`);
  });
  for (let r = 0; r < rows; r++) {
    if (r % every === 0) parts.push(`<text x="${(left - 8).toFixed(1)}" y="${(top + (r + 0.5) * cell).toFixed(1)}" text-anchor="end" dominant-baseline="central">${escape(clip(grid.rows.names[r]))}</text>`);
    for (let c = 0; c < columns; c++) {
      const weight = grid.cells[r * columns + c];
      const none = Number.isNaN(weight);
      if (none || weight > grid.largest / 512) parts.push(`<rect x="${(left + c * cell).toFixed(1)}" y="${(top + r * cell).toFixed(1)}" width="${cell.toFixed(1)}" height="${cell.toFixed(1)}" fill="${css(none ? scale.none : colour(scale.weights, weight, grid.largest))}"><title>${escape(`${grid.rows.names[r]} → ${grid.columns.names[c]}: ${weight.toFixed(4)}`)}</title></rect>`);
    }
  }
  const y = top + rows * cell + 22;
  for (let n = 0; n < 100; n++) parts.push(`<rect x="${(left + n).toFixed(1)}" y="${y}" width="1.2" height="9" fill="${css(colour(scale.weights, n, 99))}"/>`);
  parts.push(`<text x="${left}" y="${y + 24}">0</text><text x="${left + 100}" y="${y + 24}" text-anchor="end">${grid.largest.toFixed(2)}</text>`, "</svg>");
  return parts.join("");
}

function field(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // a spreadsheet would compute it
  return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

/** A map as a table: names in the first row and column. */
export function toCsv(grid: Grid): string {
  const n = grid.columns.names.length;
  const lines = [["", ...grid.columns.names].map(field).join(",")];
  grid.rows.names.forEach((name, r) => lines.push([field(name), ...Array.from(grid.cells.subarray(r * n, (r + 1) * n), (x) => x.toPrecision(7))].join(",")));
  return lines.join("\n") + "\n";
}

function npy(shape: number[], data: Float32Array): Uint8Array {
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  header += " ".repeat((64 - ((10 + header.length + 1) % 64)) % 64) + "\n";
  const found = new Uint8Array(10 + header.length + data.byteLength);
  found.set([0x93, ...[..."NUMPY"].map((c) => c.charCodeAt(0)), 1, 0, header.length & 255, header.length >> 8]);
  found.set(new TextEncoder().encode(header), 10);
  found.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length);
  return found;
}

let crcs: Uint32Array | null = null;

function crc(bytes: Uint8Array): number {
  if (!crcs) crcs = Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n >>> 0; });
  let found = 0xffffffff;
  for (const byte of bytes) found = crcs[(found ^ byte) & 255] ^ (found >>> 8);
  return (found ^ 0xffffffff) >>> 0;
}

/** Arrays as numpy's .npz: a ZIP archive of .npy files, stored. */
export function toNpz(arrays: Record<string, { shape: number[]; data: Float32Array }>): Uint8Array {
  const parts: Uint8Array[] = [], directory: Uint8Array[] = [];
  let offset = 0;
  for (const [key, { shape, data }] of Object.entries(arrays)) {
    const name = new TextEncoder().encode(`${key}.npy`), body = npy(shape, data);
    const fields = (signature: number, central: boolean) => {
      const record = new DataView(new ArrayBuffer(central ? 46 : 30));
      let at = 0;
      const put16 = (x: number) => { record.setUint16(at, x, true); at += 2; };
      const put32 = (x: number) => { record.setUint32(at, x, true); at += 4; };
      put32(signature);
      if (central) put16(20);
      put16(20); put16(0x800); put16(0); put16(0); put16(0x21); put32(crc(body)); put32(body.length); put32(body.length); put16(name.length); put16(0);
      if (central) { put16(0); put16(0); put16(0); put32(0); put32(offset); }
      return new Uint8Array(record.buffer);
    };
    directory.push(fields(0x02014b50, true), name);
    parts.push(fields(0x04034b50, false), name, body);
    offset += 30 + name.length + body.length;
  }
  const size = directory.reduce((n, part) => n + part.length, 0), count = Object.keys(arrays).length;
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true); end.setUint16(8, count, true); end.setUint16(10, count, true); end.setUint32(12, size, true); end.setUint32(16, offset, true);
  const all = [...parts, ...directory, new Uint8Array(end.buffer)];
  const found = new Uint8Array(all.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of all) { found.set(part, at); at += part.length; }
  return found;
}

/** A Python text in quotes. */
export const quoted = (text: string): string => JSON.stringify(text);

export function download(name: string, content: BlobPart, type: string) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
