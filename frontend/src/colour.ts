// Colours of weights: evenly spaced to the eye (Oklab), from the paper to ink in light, from night to glow in dark.

type Lab = [number, number, number];

function toLinear(c: number): number {
  return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
}

function toGamma(c: number): number {
  const v = c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055;
  return Math.round(255 * Math.min(1, Math.max(0, v)));
}

function toLab(hex: string): Lab {
  const [r, g, b] = [1, 3, 5].map((i) => toLinear(parseInt(hex.slice(i, i + 2), 16) / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromLab([L, a, b]: Lab): [number, number, number] {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    toGamma(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    toGamma(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    toGamma(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

/** 256 colours through some stops, three bytes each. */
export function table(stops: string[]): Uint8Array {
  const labs = stops.map(toLab);
  const found = new Uint8Array(768);
  for (let n = 0; n < 256; n++) {
    const at = (n / 255) * (labs.length - 1);
    const i = Math.min(labs.length - 2, Math.floor(at));
    const share = at - i;
    const lab = labs[i].map((x, d) => x + share * (labs[i + 1][d] - x)) as Lab;
    found.set(fromLab(lab), 3 * n);
  }
  return found;
}

export interface Scale {
  weights: Uint8Array;
  difference: Uint8Array;
}

export const LIGHT: Scale = {
  weights: table(["#fbfaf7", "#c9dcea", "#7fb0d3", "#3a7cb5", "#1b4a86", "#0d2149"]),
  difference: table(["#8c3b0f", "#d98b4f", "#fbfaf7", "#6f9fc9", "#174a86"]),
};
export const DARK: Scale = {
  weights: table(["#14171c", "#1d3a55", "#20678a", "#35a0a3", "#93d39a", "#f7f2b4"]),
  difference: table(["#f0a36a", "#9a5327", "#14171c", "#2f6fa3", "#8fc3ee"]),
};

/** The colour of a weight between 0 and `most`. */
export function colour(colours: Uint8Array, weight: number, most: number): [number, number, number] {
  const n = 3 * Math.min(255, Math.max(0, Math.round((255 * weight) / (most || 1))));
  return [colours[n], colours[n + 1], colours[n + 2]];
}

export function css(colours: Uint8Array, weight: number, most: number): string {
  const [r, g, b] = colour(colours, weight, most);
  return `rgb(${r},${g},${b})`;
}

/** Whether dark text is easier to read on this colour. */
export function wantsDark([r, g, b]: [number, number, number]): boolean {
  return 0.2126 * toLinear(r / 255) + 0.7152 * toLinear(g / 255) + 0.0722 * toLinear(b / 255) > 0.18;
}
