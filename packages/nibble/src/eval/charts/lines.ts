/** Line and point charts: error by layer, sensitivity, loss curves. */
import {
  axes,
  type ChartText,
  el,
  heading,
  legend,
  linearScale,
  logScale,
  px,
  seriesColour,
  svgDocument,
} from "./svg.js";

export interface LineSeries {
  name: string;
  points: { x: number; y: number; low?: number; high?: number }[];
  dash?: boolean;
}

export interface LineChart extends ChartText {
  xLabel: string;
  yLabel: string;
  series: LineSeries[];
  logY?: boolean;
  /** Include 0 on a linear y axis. */
  zero?: boolean;
  width?: number;
  height?: number;
}

/** Lines with a dot at every value, bands where points have an interval. */
export function lineChart(chart: LineChart): string {
  const width = chart.width ?? 720;
  const title = heading(chart, width);
  const entries = chart.series.map((s, i) => ({
    label: s.name,
    colour: seriesColour(i),
    dash: s.dash ? "5 4" : undefined,
  }));
  const key = legend(entries, 62, title.height + 6, width - 90);
  const top = title.height + key.height + 6;
  const height = top + (chart.height ?? 300);
  const frame = { width, height, left: 64, right: 20, top, bottom: 48 };
  const points = chart.series.flatMap((s) => s.points);
  const ys = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).filter(Number.isFinite);
  const xs = points.map((p) => p.x);
  const yRange: [number, number] = [Math.min(...ys), Math.max(...ys)];
  const yPixels: [number, number] = [height - frame.bottom, top];
  const positive = ys.filter((v) => v > 0);
  const y = chart.logY
    ? logScale([Math.min(...positive), Math.max(...positive)], yPixels)
    : linearScale(chart.zero ? [Math.min(0, yRange[0]), yRange[1]] : yRange, yPixels);
  const x = linearScale(
    [Math.min(...xs), Math.max(...xs)],
    [frame.left + 8, width - frame.right - 8],
    {
      count: 10,
      nice: false,
    },
  );
  let body = axes(frame, x, y, { x: chart.xLabel, y: chart.yLabel });
  for (const [i, { points: line, dash }] of chart.series.entries()) {
    const colour = seriesColour(i);
    const shown = line.filter((p) => Number.isFinite(p.y) && (!chart.logY || p.y > 0));
    const band = shown.filter((p) => p.low !== undefined && p.high !== undefined);
    if (band.length > 1) {
      const upper = band.map((p) => `${px(x(p.x))} ${px(y(p.high as number))}`);
      const lower = band.map((p) => `${px(x(p.x))} ${px(y(p.low as number))}`).reverse();
      body += el("path", {
        d: `M${[...upper, ...lower].join("L")}Z`,
        style: `fill:${colour};opacity:.18`,
      });
    }
    body += el("path", {
      d: `M${shown.map((p) => `${px(x(p.x))} ${px(y(p.y))}`).join("L")}`,
      style: `fill:none;stroke:${colour};stroke-width:2${dash ? ";stroke-dasharray:5 4" : ""}`,
    });
    for (const p of shown) {
      body += el("circle", { cx: x(p.x), cy: y(p.y), r: 2.6, style: `fill:${colour}` });
    }
  }
  return svgDocument(width, height, chart.title, title.svg + key.svg + body);
}
