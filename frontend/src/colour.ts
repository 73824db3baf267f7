// Colours of weights: the scales of every figure of regard (src/regard/figures/colours.json), linear between anchors in
// OKLab (Ottosson 2020).
import themes from "../../src/regard/figures/colours.json";

export type Colour = [number, number, number];

const STEPS = 256;

function toLinear(c: number): number {
  return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
}

function toGamma(c: number): number {
  const part = Math.min(1, Math.max(0, c));
  return Math.round(255 * (part <= 0.0031308 ? 12.92 * part : 1.055 * part ** (1 / 2.4) - 0.055));
}

/** OKLab to linear sRGB. */
function linear(light: number, a: number, b: number): Colour {
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

/** 256 colours through anchors [lightness, chroma, hue in degrees], three bytes each; chroma gives way where sRGB has none of it. */
export function table(anchors: number[][]): Uint8Array {
  const labs = anchors.map(([light, chroma, hue]) => [light, chroma * Math.cos((hue * Math.PI) / 180), chroma * Math.sin((hue * Math.PI) / 180)]);
  const found = new Uint8Array(3 * STEPS);
  for (let n = 0; n < STEPS; n++) {
    const at = (n / (STEPS - 1)) * (labs.length - 1);
    const i = Math.min(labs.length - 2, Math.floor(at));
    const [light, a, b] = labs[i].map((x, d) => x + (at - i) * (labs[i + 1][d] - x));
    const fits = (share: number) => linear(light, share * a, share * b).every((part) => part >= 0 && part <= 1);
    let low = fits(1) ? 1 : 0;
    for (let step = 0, high = 1; low < 1 && step < 20; step++) {
      const middle = (low + high) / 2;
      if (fits(middle)) low = middle;
      else high = middle;
    }
    found.set(linear(light, low * a, low * b).map(toGamma), 3 * n);
  }
  return found;
}

export interface Scale {
  weights: Uint8Array;
  difference: Uint8Array;
  /** Of a weight that is no number. */
  none: Colour;
}

const scale = ({ weights, signed, line }: { weights: number[][]; signed: number[][]; line: string }): Scale => ({
  weights: table(weights), difference: table(signed), none: [1, 3, 5].map((i) => parseInt(line.slice(i, i + 2), 16)) as Colour,
});
/** Colours of lines that are told apart. */
export const series = (dark: boolean): string[] => (dark ? themes.dark : themes.light).series;
export const LIGHT = scale(themes.light);
export const DARK = scale(themes.dark);

/** The colour of a weight between 0 and `most`. */
export function colour(colours: Uint8Array, weight: number, most: number): Colour {
  const n = 3 * Math.min(STEPS - 1, Math.max(0, Math.round(((STEPS - 1) * weight) / (most || 1))));
  return [colours[n], colours[n + 1], colours[n + 2]];
}

const BITS = 18; // of a float32: its sign, its exponent and 9 of its fraction, less than a step of colour

/** The pixel of every weight: by the first bits of its float32, `shade` being its place on the scale, from 0 to 1. */
export function inks({ weights, none }: Scale, shade: (weight: number) => number): Uint32Array {
  const pixel = ([r, g, b]: Iterable<number>) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const own = Uint32Array.from({ length: STEPS }, (_, n) => pixel(weights.subarray(3 * n, 3 * n + 3)));
  const found = new Uint32Array(1 << BITS).fill(own[0]); // negative ones are none
  const bits = new Uint32Array(1), weight = new Float32Array(bits.buffer);
  for (let n = 0; n < 1 << (BITS - 1); n++) {
    bits[0] = n << (32 - BITS);
    found[n] = Number.isNaN(weight[0]) ? pixel(none) : own[Math.min(STEPS - 1, Math.max(0, Math.round((STEPS - 1) * shade(weight[0]))))];
  }
  return found;
}

/** A picture of cells, one pixel each, in the colours that `inks` gave. */
export function picture(cells: Float32Array, rows: number, columns: number, colours: Uint32Array): HTMLCanvasElement {
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer), bits = new Uint32Array(cells.buffer, cells.byteOffset, rows * columns);
  for (let n = 0; n < pixels.length; n++) pixels[n] = colours[bits[n] >>> (32 - BITS)];
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  return canvas;
}

export const css = (rgb: Colour): string => `rgb(${rgb.join()})`;

/** Black or white, whichever has the higher contrast with a ground (WCAG 2.1). */
export function inkOn([r, g, b]: Colour): string {
  const luminance = 0.2126 * toLinear(r / 255) + 0.7152 * toLinear(g / 255) + 0.0722 * toLinear(b / 255);
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#ffffff" : "#000000";
}

/** A colour of the page's style sheet, for a canvas or a file. */
export const styled = (element: Element, name: string): string => getComputedStyle(element).getPropertyValue(name).trim();
