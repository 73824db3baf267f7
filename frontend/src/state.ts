// What a view is of: kept in the address, so that a link shows the same.
import { computed, effect, signal } from "@preact/signals";
import { DARK, LIGHT, type Scale } from "./colour";
import type { Believe, Document, Grid, MapInfo, Reader, Run } from "./document";

export const SCREENS = ["align", "step", "heads", "long", "believe", "compare", "media", "words", "ways"] as const;
export type Screen = (typeof SCREENS)[number];

export const ZOOMS = ["model", "head", "row", "weight"] as const;
export type Zoom = (typeof ZOOMS)[number];

export interface Place {
  row: number | null;
  column: number | null;
}

export const NOWHERE: Place = { row: null, column: null };

/** Names to a side of the part of a long map that is shown with its words. */
export const WINDOW = 32;

/** A place in a part of a map; null where it is outside. */
export function within({ top, left, rows, columns }: Grid, { row, column }: Place): Place {
  const inside = (n: number | null, first: number, size: number) => (n === null || n < first || n >= first + size ? null : n - first);
  return { row: inside(row, top, rows.names.length), column: inside(column, left, columns.names.length) };
}

export const isLarge = (map: MapInfo): boolean => Math.max(map.how.queries, map.how.keys) > 256;

export type Source = { document: Document; reader: Reader };

/** The state of one page; two pages on one screen have two. */
export function createState(source: Source, inAddress: boolean) {
  const document = signal(source.document);
  const reader = signal(source.reader);
  const screen = signal<Screen>("align");
  const zoom = signal<Zoom>("row");
  const runIndex = signal(0);
  const site = signal("");
  const head = signal<number | "chosen" | "mean">("chosen");
  const byWords = signal(true);
  const hover = signal(NOWHERE);
  const pinned = signal<Place | null>(null);
  const theme = signal<"auto" | "light" | "dark">("auto");
  const systemDark = signal(false);
  const tour = signal<number | null>(null);
  const other = signal<{ run: number; site: string; head: number | "mean" } | null>(null);

  const tests = signal(new Map<Run, Believe | string>()); // made after the maps were drawn; a string is why not

  const run = computed<Run>(() => document.value.runs[Math.min(runIndex.value, document.value.runs.length - 1)]);
  const map = computed<MapInfo>(() => {
    const maps = run.value.maps;
    return (
      maps.find((m) => m.site === site.value) ??
      maps.find((m) => m.site === run.value.chosen?.site) ??
      maps[maps.length - 1]
    );
  });
  /** The test of the run's map; the site that is being tested; or why it could not be. */
  const believe = computed<{ found?: Believe; testing?: string; fault?: string }>(() => {
    const known = run.value.believe ?? tests.value.get(run.value);
    if (typeof known === "string") return { fault: known };
    return known ? { found: known } : { testing: document.value.live && run.value.to_test };
  });
  const all = computed(() => Array.from({ length: map.value.how.heads }, (_, h) => h));
  const heads = computed<number[]>(() => {
    if (typeof head.value === "number") return [Math.min(head.value, map.value.how.heads - 1)];
    const chosen = run.value.chosen;
    if (head.value === "chosen" && chosen && chosen.site === map.value.site) return chosen.heads;
    return all.value;
  });
  const why = computed(() => {
    const chosen = run.value.chosen;
    if (head.value === "chosen" && chosen && chosen.site === map.value.site) return chosen.why;
    if (typeof head.value === "number") return "chosen by you";
    return map.value.how.heads > 1 ? "no single head was selected" : "";
  });
  const large = computed(() => isLarge(map.value));
  /** The word, or token, in the middle of what is shown of a long map. */
  const middle = signal({ row: 0, column: 0 });
  const grid = computed(() => {
    const { row, column } = middle.value;
    return reader.value.grid(run.value, map.value, heads.value, byWords.value, large.value ? [row - WINDOW / 2, column - WINDOW / 2, WINDOW, WINDOW] : undefined);
  });
  const first: Screen = run.value.media ? "media" : large.value ? "long" : "align"; // what is opened
  screen.value = first;
  const place = computed<Place>(() => {
    const { row, column } = hover.value;
    return row === null && column === null && pinned.value ? pinned.value : hover.value;
  });
  const dark = computed(() => (theme.value === "auto" ? systemDark.value : theme.value === "dark"));
  const scale = computed<Scale>(() => (dark.value ? DARK : LIGHT));

  if (inAddress) {
    const at = new URLSearchParams(location.hash.slice(1));
    const wanted = at.get("screen") as Screen | null;
    if (wanted && SCREENS.includes(wanted)) screen.value = wanted;
    const level = at.get("zoom") as Zoom | null;
    if (level && ZOOMS.includes(level)) zoom.value = level;
    const whole = (name: string) => { const text = at.get(name); return text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null; };
    runIndex.value = whole("run") ?? 0;
    site.value = at.get("site") ?? "";
    if (at.get("head") === "mean") head.value = "mean";
    else head.value = whole("head") ?? "chosen";
    if (at.get("unit") === "tokens") byWords.value = false;
    const row = whole("row"), column = whole("column");
    if (row !== null || column !== null) pinned.value = { row, column };
    middle.value = { row: row ?? column ?? 0, column: column ?? row ?? 0 };
    const second = /^(\d{1,9})~(mean|\d{1,9})~(.*)$/.exec(at.get("other") ?? ""); // that a map is compared with
    if (second) other.value = { run: Number(second[1]), head: second[2] === "mean" ? "mean" : Number(second[2]), site: second[3] };
    const kind = at.get("theme");
    if (kind === "light" || kind === "dark") theme.value = kind;
    effect(() => {
      const here = new URLSearchParams();
      if (screen.value !== first) here.set("screen", screen.value);
      if (zoom.value !== "row") here.set("zoom", zoom.value);
      if (runIndex.value) here.set("run", String(runIndex.value));
      if (site.value) here.set("site", site.value);
      if (head.value !== "chosen") here.set("head", String(head.value));
      if (!byWords.value) here.set("unit", "tokens");
      if (pinned.value?.row != null) here.set("row", String(pinned.value.row));
      if (pinned.value?.column != null) here.set("column", String(pinned.value.column));
      if (other.value) here.set("other", `${other.value.run}~${other.value.head}~${other.value.site}`);
      if (theme.value !== "auto") here.set("theme", theme.value);
      const text = here.toString();
      if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    });
  }
  return {
    document, reader, screen, zoom, runIndex, run, site, map, head, heads, all, why, byWords, hover, pinned, place, theme,
    systemDark, dark, scale, grid, large, middle, tour, other, tests, believe,
  };
}

export type State = ReturnType<typeof createState>;
