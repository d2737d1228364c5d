/** A matrix as colours: errors or sensitivities by layer and module. */
import {
  type ChartText,
  el,
  escapeXml,
  formatNumber,
  heading,
  px,
  svgDocument,
  text,
  textWidth,
} from "./svg.js";

export interface Heatmap extends ChartText {
  rows: string[];
  columns: string[];
  xLabel: string;
  yLabel: string;
  valueLabel: string;
  /** [rows][columns]; NaN is left empty. */
  values: number[][];
  log?: boolean;
  /** Ends of the colours; default: smallest and largest value. */
  range?: [number, number];
  width?: number;
}

/** Dark blue over teal to yellow: lightness rises evenly, so it reads in grey and for colour-blind readers. */
const RAMP: readonly [number, number, number][] = [
  [37, 29, 84],
  [52, 78, 138],
  [33, 122, 141],
  [47, 166, 124],
  [132, 204, 78],
  [248, 224, 62],
];

export function rampColour(share: number): string {
  const at = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  const [a, b] = [RAMP[i], RAMP[i + 1]] as [[number, number, number], [number, number, number]];
  return `#${a
    .map((v, c) =>
      Math.round(v + ((b[c] as number) - v) * (at - i))
        .toString(16)
        .padStart(2, "0"),
    )
    .join("")}`;
}

export function heatmap(chart: Heatmap): string {
  const width = chart.width ?? 760;
  const title = heading(chart, width);
  const left = 34 + Math.max(...chart.rows.map((r) => textWidth(r)));
  const right = 96;
  const cell = (width - left - right) / chart.columns.length;
  const cellHeight = Math.max(16, Math.min(28, 260 / chart.rows.length));
  const top = title.height + 12;
  const bottom = top + cellHeight * chart.rows.length;
  const height = bottom + 48;
  const finite = chart.values.flat().filter((v) => Number.isFinite(v) && (!chart.log || v > 0));
  const [low, high] = chart.range ?? [Math.min(...finite), Math.max(...finite)];
  const scale = (v: number) => (chart.log ? Math.log(v) : v);
  const share = (v: number) =>
    high > low ? (scale(Math.max(v, low)) - scale(low)) / (scale(high) - scale(low)) : 0.5;
  let body = "";
  for (const [r, name] of chart.rows.entries()) {
    const y = top + r * cellHeight;
    body += text(left - 8, y + cellHeight / 2 + 4, name, { anchor: "end" });
    for (const [c, column] of chart.columns.entries()) {
      const v = chart.values[r]?.[c] ?? Number.NaN;
      if (!Number.isFinite(v)) continue;
      const rect = {
        x: left + c * cell,
        y,
        width: cell - 1,
        height: cellHeight - 1,
        style: `fill:${rampColour(share(v))}`,
      };
      body += el(
        "rect",
        rect,
        `<title>${escapeXml(`${name}, ${column}: ${formatNumber(v)}`)}</title>`,
      );
    }
  }
  const every = Math.max(
    1,
    Math.ceil((Math.max(...chart.columns.map((c) => textWidth(c))) + 8) / cell),
  );
  for (const [c, name] of chart.columns.entries()) {
    if (c % every === 0)
      body += text(left + (c + 0.5) * cell, bottom + 16, name, { anchor: "middle", class: "m" });
  }
  body += text((left + width - right) / 2, height - 8, chart.xLabel, { anchor: "middle" });
  body += text(14, (top + bottom) / 2, chart.yLabel, { anchor: "middle", rotate: -90 });
  // Colour key.
  const keyX = width - right + 16;
  const steps = 40;
  const barHeight = Math.max(90, bottom - top);
  for (let i = 0; i < steps; i++) {
    body += el("rect", {
      x: keyX,
      y: top + (i * barHeight) / steps,
      width: 12,
      height: barHeight / steps + 0.5,
      style: `fill:${rampColour(1 - i / (steps - 1))}`,
    });
  }
  const middle = chart.log ? Math.exp((scale(low) + scale(high)) / 2) : (low + high) / 2;
  for (const [at, v] of [
    [0, high],
    [0.5, middle],
    [1, low],
  ] as const) {
    body += text(
      keyX + 17,
      top + at * barHeight + (at === 0 ? 10 : at === 1 ? 0 : 4),
      formatNumber(v, v / 10),
      { size: 10, class: "m" },
    );
  }
  const end = top + barHeight / 2;
  body += el(
    "g",
    { transform: `rotate(-90 ${px(width - 10)} ${px(end)})` },
    text(width - 10, end, chart.valueLabel, { anchor: "middle", size: 11 }),
  );
  return svgDocument(width, Math.max(height, top + barHeight + 20), chart.title, title.svg + body);
}
