// Two lines of words, and a ribbon for every weight between them.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { usePage } from "./context";
import type { Grid } from "./document";
import { inGrid } from "./parts";
import { NOWHERE, within, type Place } from "./state";

/** The log-probability below which a word is said to be unsure. */
export const UNSURE = Math.log(0.5);

/** The keys above, the queries below, and between them a ribbon for every weight that can be seen; side by side where a
 * line is too long for the page. */
export function Ribbons({ grid, ...pointed }: { grid: Grid; place: Place; onPlace: (p: Place) => void; onPin: (p: Place) => void }) {
  const { place, onPlace, onPin } = inGrid(grid, pointed) as typeof pointed;
  const page = usePage();
  const sheet = useRef<HTMLDivElement>(null);
  const [lines, setLines] = useState<{ key: string; d: string; weight: number; row: number; column: number }[]>([]);
  const n = grid.columns.names.length;
  const measure = () => {
    const box = sheet.current;
    if (!box) return;
    // long lines get smaller letters, down to 14 px, before the two of them stand side by side
    box.classList.remove("upright");
    box.style.removeProperty("--size");
    const needed = box.scrollWidth, given = box.parentElement!.clientWidth;
    const size = Math.floor((19 * given) / needed - 0.5);
    const upright = needed > given && size < 14;
    box.classList.toggle("upright", upright);
    if (needed > given && !upright) box.style.setProperty("--size", `${size}px`);
    const origin = box.getBoundingClientRect();
    const at = (kind: string, edge: "top" | "bottom" | "left" | "right") =>
      [...box.querySelectorAll<HTMLElement>(`.${kind} .word`)].map((element) => {
        const own = element.getBoundingClientRect();
        return upright ? [own[edge] - origin.left, own.top + own.height / 2 - origin.top] as const : [own.left + own.width / 2 - origin.left, own[edge] - origin.top] as const;
      });
    const tops = at("of-columns", upright ? "right" : "bottom");
    const bottoms = at("of-rows", upright ? "left" : "top");
    const curve = ([x0, y0]: readonly [number, number], [x1, y1]: readonly [number, number]) => {
      const points = upright ? [x0 + 6, y0, (x0 + x1) / 2, y0, (x0 + x1) / 2, y1, x1 - 6, y1] : [x0, y0 + 2, x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1 - 2];
      const [a, b, ...rest] = points.map((x) => x.toFixed(1));
      return `M${a} ${b}C${rest.join(" ")}`;
    };
    const found = [];
    for (let r = 0; r < bottoms.length; r++) {
      for (let c = 0; c < tops.length; c++) {
        const weight = grid.cells[r * n + c];
        if (!(weight >= 0.03)) continue;
        found.push({ key: `${r}-${c}`, d: curve(tops[c], bottoms[r]), weight, row: r, column: c });
      }
    }
    found.sort((a, b) => a.weight - b.weight);
    setLines(found);
  };
  useLayoutEffect(() => {
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(sheet.current!.parentElement!);
    return () => observer.disconnect();
  }, [grid]);
  const run = page.run.value;
  const map = page.map.value;
  const said = page.byWords.value && map.rows !== null ? run.words?.[map.rows] : undefined;
  const pinned = within(grid, page.pinned.value ?? NOWHERE);
  const chosen = place.row !== null || place.column !== null;
  const lit = (row: number, column: number) => (place.row === null || place.row === row) && (place.column === null || place.column === column);
  const touched = (side: "row" | "column", index: number): boolean => {
    if (!chosen) return true;
    if (place[side] !== null) return place[side] === index;
    const other = side === "row" ? place.column! : place.row!;
    return (side === "row" ? grid.cells[index * n + other] : grid.cells[other * n + index]) > 0.1;
  };
  const button = (side: "row" | "column", name: string, index: number) => {
    const own: Place = { row: side === "row" ? index : null, column: side === "column" ? index : null };
    const log = side === "row" ? said?.log_prob?.[index + grid.top] : undefined;
    const state = place[side] === index ? " on" : touched(side, index) ? "" : " dim";
    return (
      <button
        key={`${side}${index}`} class={`word${state}${log !== undefined && log < UNSURE ? " unsure" : ""}`}
        aria-pressed={pinned[side] === index} title={log === undefined ? name : `${name}: probability ${Math.exp(log).toFixed(2)}`}
        onPointerEnter={() => onPlace(own)} onPointerLeave={() => onPlace(NOWHERE)}
        onFocus={() => onPlace(own)} onBlur={() => onPlace(NOWHERE)} onClick={() => onPin(own)}
      >
        {name}
        {log !== undefined && <span class="sure" aria-hidden="true"><i style={{ width: `${100 * Math.exp(log)}%` }} /></span>}
      </button>
    );
  };
  return (
    <div class="ribbons" data-tour="ribbons">
      <div class="sheet" ref={sheet}>
        <svg aria-hidden="true">
          {lines.map((line) => (
            <path
              key={line.key} d={line.d} fill="none" stroke="var(--accent)" stroke-linecap="round"
              stroke-width={(1 + 13 * line.weight).toFixed(2)} stroke-opacity={(lit(line.row, line.column) ? 0.15 + 0.75 * line.weight : 0.04).toFixed(3)}
            />
          ))}
        </svg>
        <p class="side of-columns">{map.columns === "source" ? "source" : "keys (attended to)"}</p>
        <div class="line of-columns" dir="auto">{grid.columns.names.map((name, c) => button("column", name, c))}</div>
        <div class="line of-rows" dir="auto">{grid.rows.names.map((name, r) => button("row", name, r))}</div>
        <p class="side of-rows">{map.rows === "output" ? "output" : "queries (attend)"}{said?.log_prob ? "; the bar under a word: its probability (red: below 0.5)" : ""}</p>
      </div>
    </div>
  );
}
