/** Bits against perplexity, speed as the size of the dot: which artifact is worth its bytes. */
import {
  axes,
  type ChartText,
  el,
  formatNumber,
  heading,
  linearScale,
  logScale,
  px,
  seriesColour,
  svgDocument,
  text,
  textWidth,
} from "./svg.js";

export interface ParetoPoint {
  name: string;
  /** Smaller is better. */
  x: number;
  /** Smaller is better. */
  y: number;
  low?: number;
  high?: number;
  /** Larger is better; drawn as area. */
  speed?: number;
  baseline?: boolean;
}

export interface ParetoChart extends ChartText {
  xLabel: string;
  yLabel: string;
  speedLabel: string;
  points: ParetoPoint[];
  width?: number;
}

/** Points that no other beats in both x and y, from left to right. Of equals the first stays. */
export function paretoFront<P extends { x: number; y: number }>(points: P[]): P[] {
  const sorted = points
    .filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y))
    .sort((a, b) => a.x - b.x || a.y - b.y);
  const front: P[] = [];
  for (const p of sorted)
    if (front.length === 0 || p.y < (front[front.length - 1] as P).y) front.push(p);
  return front;
}

/** Names stay readable where they cross a line after all. */
const HALO =
  "paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round;stroke-opacity:.85";

interface Box {
  x0: number;
  x1: number;
  y0: number;
  y1: number;
}
const overlap = (a: Box, b: Box) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;

export function paretoChart(chart: ParetoChart): string {
  const width = chart.width ?? 720;
  const title = heading(chart, width);
  const top = title.height + 30;
  const height = top + 360;
  const frame = { width, height, left: 70, right: 30, top, bottom: 48 };
  const points = chart.points.filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y));
  const xs = points.map((p) => p.x);
  const ys = points
    .flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y])
    .filter((v) => Number.isFinite(v) && v > 0);
  const span = (values: number[]): [number, number] => [Math.min(...values), Math.max(...values)];
  const xPixels: [number, number] = [frame.left + 24, width - frame.right - 40];
  const wide = Math.max(...xs) / Math.min(...xs) > 4;
  const x = wide ? logScale(span(xs), xPixels) : linearScale(span(xs), xPixels, { count: 8 });
  const y = logScale(span(ys), [height - frame.bottom - 8, top + 8]);
  const speeds = points.map((p) => p.speed ?? 0);
  const fastest = Math.max(...speeds, 0);
  const radius = (p: ParetoPoint) =>
    fastest > 0 && p.speed ? 4 + 9 * Math.sqrt(p.speed / fastest) : 6;

  let body = axes(frame, x, y, {
    x: wide ? `${chart.xLabel} (log scale)` : chart.xLabel,
    y: `${chart.yLabel} (log scale)`,
  });
  const front = paretoFront(points);
  // A staircase: between two artifacts one gets the better of the cheaper ones, not a mixture.
  let path = "";
  for (const [i, p] of front.entries())
    path += i === 0 ? `M${px(x(p.x))} ${px(y(p.y))}` : `H${px(x(p.x))}V${px(y(p.y))}`;
  if (front.length > 1) {
    body += el("path", {
      d: path,
      style: `fill:none;stroke:${seriesColour(2)};stroke-width:2;stroke-dasharray:6 4`,
    });
  }
  const boxes: Box[] = points.map((p) => {
    const r = radius(p);
    return { x0: x(p.x) - r, x1: x(p.x) + r, y0: y(p.y) - r, y1: y(p.y) + r };
  });
  // Names keep off the staircase and the bars.
  const line = (xa: number, xb: number, ya: number, yb: number) =>
    boxes.push({
      x0: Math.min(xa, xb) - 1,
      x1: Math.max(xa, xb) + 1,
      y0: Math.min(ya, yb) - 1,
      y1: Math.max(ya, yb) + 1,
    });
  for (const [i, p] of front.entries()) {
    const before = front[i - 1];
    if (!before) continue;
    line(x(before.x), x(p.x), y(before.y), y(before.y));
    line(x(p.x), x(p.x), y(before.y), y(p.y));
  }
  for (const { x: at, low, high } of points)
    if (low !== undefined && high !== undefined && low > 0) line(x(at), x(at), y(low), y(high));
  let labels = "";
  for (const [i, p] of points.entries()) {
    const [cx, cy, r] = [x(p.x), y(p.y), radius(p)];
    const colour = seriesColour(p.baseline ? 6 : front.includes(p) ? 2 : 1);
    if (p.low !== undefined && p.high !== undefined && p.low > 0 && Number.isFinite(p.high)) {
      body += el("path", {
        d: `M${px(cx)} ${px(y(p.low))}V${px(y(p.high))}`,
        style: "stroke:var(--ink);stroke-width:1.2",
      });
    }
    body += el("circle", {
      cx,
      cy,
      r,
      style: `fill:${colour};fill-opacity:.75;stroke:var(--paper);stroke-width:1.5`,
    });
    const w = textWidth(p.name);
    const places: [number, number][] = [
      [cx + r + 4, cy + 4],
      [cx - r - 8 - w, cy + 4],
      [cx - w / 2, cy - r - 6],
      [cx - w / 2, cy + r + 14],
      [cx + r + 4, cy - 12],
      [cx + r + 4, cy + 20],
      [cx - r - 8 - w, cy - 12],
      [cx - r - 8 - w, cy + 20],
    ];
    const free =
      places.find(([lx, ly]) => {
        const box = { x0: lx - 2, x1: lx + w + 2, y0: ly - 11, y1: ly + 3 };
        if (
          box.x0 < frame.left ||
          box.x1 > width - 4 ||
          box.y0 < top - 6 ||
          box.y1 > height - frame.bottom
        )
          return false;
        return boxes.every((other, j) => j === i || !overlap(box, other));
      }) ?? (places[0] as [number, number]);
    boxes.push({ x0: free[0] - 2, x1: free[0] + w + 2, y0: free[1] - 11, y1: free[1] + 3 });
    labels += text(free[0], free[1], p.name);
  }
  let key = "";
  let at = 70;
  const entry = (mark: string, label: string) => {
    key += mark + text(at + 24, title.height + 12, label);
    at += 40 + textWidth(label);
  };
  const dot = (i: number) =>
    el("circle", {
      cx: at + 10,
      cy: title.height + 8,
      r: 6,
      style: `fill:${seriesColour(i)};fill-opacity:.75`,
    });
  entry(dot(2), "best for its size");
  if (points.some((p) => !p.baseline && !front.includes(p)))
    entry(dot(1), "beaten by a smaller one");
  if (points.some((p) => p.baseline)) entry(dot(6), "original");
  if (fastest > 0) {
    const ring = el("circle", {
      cx: at + 10,
      cy: title.height + 8,
      r: 8,
      style: "fill:none;stroke:var(--muted)",
    });
    entry(ring, `area: ${chart.speedLabel} (largest ${formatNumber(fastest, 1)})`);
  }
  return svgDocument(
    width,
    height,
    chart.title,
    title.svg + key + body + el("g", { style: HALO }, labels),
  );
}
