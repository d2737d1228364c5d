/**
 * The picture that every article on rotation opens with: |activation| over tokens and channels as a landscape, before and
 * after. Drawn as ridges from back to front, so it is plain SVG; both landscapes share one height scale.
 */
import {
  type ChartText,
  el,
  formatNumber,
  heading,
  linearScale,
  px,
  svgDocument,
  text,
} from "./svg.js";

export interface Surface {
  name: string;
  /** Values [rows, columns], row-major, >= 0. */
  values: ArrayLike<number>;
  rows: number;
  columns: number;
}

export interface SurfaceChart extends ChartText {
  /** What lies along the ridges ("channel") and from front to back ("token"). */
  columnLabel: string;
  rowLabel: string;
  valueLabel: string;
  surfaces: Surface[];
  width?: number;
}

/** Largest value of each of at most `count` equal slices of the columns and rows: peaks must not vanish by thinning. */
export function peaks(
  surface: Surface,
  rows: number,
  columns: number,
): { values: Float64Array; rows: number; columns: number } {
  const r = Math.min(rows, surface.rows);
  const c = Math.min(columns, surface.columns);
  const values = new Float64Array(r * c);
  for (let i = 0; i < surface.rows; i++) {
    const to = Math.floor((i * r) / surface.rows) * c;
    for (let j = 0; j < surface.columns; j++) {
      const at = to + Math.floor((j * c) / surface.columns);
      const v = surface.values[i * surface.columns + j] as number;
      if (v > (values[at] as number)) values[at] = v;
    }
  }
  return { values, rows: r, columns: c };
}

const PANEL_HEIGHT = 300;
const PEAK_HEIGHT = 170;
const DEPTH_X = 70;
const DEPTH_Y = 85;

export function surfaceChart(chart: SurfaceChart): string {
  const width = chart.width ?? 960;
  const title = heading(chart, width);
  const gap = 24;
  const panel = (width - gap * (chart.surfaces.length + 1)) / chart.surfaces.length;
  const top = title.height + 16;
  const height = top + PANEL_HEIGHT + 40;
  const highest = Math.max(
    ...chart.surfaces.map((s) => Math.max(...Array.from(peaks(s, 64, 256).values))),
  );
  let body = "";
  for (const [index, surface] of chart.surfaces.entries()) {
    const { values, rows, columns } = peaks(surface, 40, Math.min(200, Math.floor(panel / 2)));
    const left = gap + index * (panel + gap) + 46;
    const run = panel - 46 - DEPTH_X - 10;
    const floor = top + PANEL_HEIGHT - 20;
    const own = Math.max(...values);
    const at = (row: number, column: number, value: number): [number, number] => {
      const back = rows > 1 ? row / (rows - 1) : 0;
      return [
        left + (column / Math.max(1, columns - 1)) * run + back * DEPTH_X,
        floor - back * DEPTH_Y - (value / highest) * PEAK_HEIGHT,
      ];
    };
    const point = (row: number, column: number, value: number) =>
      at(row, column, value).map(px).join(" ");
    // Floor and height axis first, ridges over them.
    body += el("path", {
      class: "a",
      d: `M${point(0, 0, 0)}L${point(0, columns - 1, 0)}L${point(rows - 1, columns - 1, 0)}L${point(rows - 1, 0, 0)}Z`,
    });
    for (const { value, label } of linearScale([0, highest], [0, 1], { nice: false }).ticks) {
      const [x, y] = at(0, 0, value);
      body += el("path", { class: "a", d: `M${px(x - 4)} ${px(y)}h4` });
      body += text(x - 7, y + 4, label, { anchor: "end", class: "m", size: 10 });
    }
    const [ax, ay] = at(0, 0, 0);
    body += el("path", { class: "a", d: `M${px(ax)} ${px(ay)}V${px(ay - PEAK_HEIGHT)}` });
    if (index === 0)
      body += text(left - 44, floor - PEAK_HEIGHT / 2, chart.valueLabel, {
        anchor: "middle",
        rotate: -90,
        size: 11,
      });
    for (let row = rows - 1; row >= 0; row--) {
      let d = `M${point(row, 0, 0)}`;
      let ridge = "";
      for (let column = 0; column < columns; column++) {
        const p = point(row, column, values[row * columns + column] as number);
        d += `L${p}`;
        ridge += `${column === 0 ? "M" : "L"}${p}`;
      }
      body += el("path", {
        d: `${d}L${point(row, columns - 1, 0)}Z`,
        style: "fill:var(--paper);fill-opacity:.82",
      });
      body += el("path", {
        d: ridge,
        style: `fill:none;stroke:var(--s${index === 0 ? 1 : 0});stroke-width:1`,
      });
    }
    body += text(left + run / 2, floor + 20, `${chart.columnLabel} (${surface.columns}) →`, {
      anchor: "middle",
      size: 11,
    });
    const [bx, by] = at((rows - 1) / 2, columns - 1, 0);
    body += text(bx + 6, by + 12, `${chart.rowLabel} (${surface.rows})`, { size: 11 });
    body += text(left, top, surface.name, { class: "t", size: 13 });
    body += text(left, top + 17, `largest ${formatNumber(own, own / 100)}`, { class: "m" });
  }
  return svgDocument(width, height, chart.title, title.svg + body);
}
