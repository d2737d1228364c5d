/** Histogram of weights with the values that the codes can stand for drawn on it. */
import {
  axes,
  type ChartText,
  el,
  heading,
  legend,
  linearScale,
  px,
  seriesColour,
  svgDocument,
} from "./svg.js";

export interface Histogram extends ChartText {
  xLabel: string;
  values: ArrayLike<number>;
  /** Values of the grid, in the units of `values`. */
  grid: number[];
  bins?: number;
  /** Ends of the first and last bin; default: a little beyond the values. */
  range?: [number, number];
  width?: number;
}

/** Counts in equal bins from low to high; what lies outside goes to the end bins. */
export function countBins(
  values: ArrayLike<number>,
  low: number,
  high: number,
  bins: number,
): Float64Array {
  const counts = new Float64Array(bins);
  for (let i = 0; i < values.length; i++) {
    const at = Math.floor((((values[i] as number) - low) / (high - low)) * bins);
    const bin = Math.min(bins - 1, Math.max(0, at));
    counts[bin] = (counts[bin] as number) + 1;
  }
  return counts;
}

export function histogram(chart: Histogram): string {
  const width = chart.width ?? 720;
  const bins = chart.bins ?? 120;
  const title = heading(chart, width);
  const key = legend(
    [
      { label: "weights", colour: seriesColour(0) },
      ...(chart.grid.length > 0
        ? [{ label: `values of the grid (${chart.grid.length})`, colour: seriesColour(1) }]
        : []),
    ],
    70,
    title.height + 6,
    width - 90,
  );
  const top = title.height + key.height + 6;
  const height = top + 290;
  const frame = { width, height, left: 64, right: 20, top, bottom: 48 };
  let low = Math.min(...chart.grid);
  let high = Math.max(...chart.grid);
  for (let i = 0; i < chart.values.length; i++) {
    low = Math.min(low, chart.values[i] as number);
    high = Math.max(high, chart.values[i] as number);
  }
  const pad = (high - low) * 0.02 || 1;
  low -= pad;
  high += pad;
  if (chart.range) [low, high] = chart.range;
  const counts = countBins(chart.values, low, high, bins);
  const share = Array.from(counts, (c) => (100 * c) / Math.max(1, chart.values.length));
  const x = linearScale([low, high], [frame.left, width - frame.right], { count: 8, nice: false });
  const y = linearScale([0, Math.max(...share)], [height - frame.bottom, top]);
  let body = axes(frame, x, y, { x: chart.xLabel, y: "share of weights (%)" });
  const step = (high - low) / bins;
  for (const [i, v] of share.entries()) {
    if (v === 0) continue;
    const [a, b] = [x(low + i * step), x(low + (i + 1) * step)];
    body += el("rect", {
      x: a,
      y: y(v),
      width: Math.max(0.5, b - a - 0.6),
      height: y(0) - y(v),
      style: `fill:${seriesColour(0)};opacity:.85`,
    });
  }
  for (const g of chart.grid) {
    body += el("path", {
      d: `M${px(x(g))} ${px(y(0) + 5)}V${px(top)}`,
      style: `stroke:${seriesColour(1)};stroke-width:1.2;stroke-dasharray:3 3`,
    });
    body += el("circle", { cx: x(g), cy: y(0), r: 3.2, style: `fill:${seriesColour(1)}` });
  }
  return svgDocument(width, height, chart.title, title.svg + key.svg + body);
}
