/** Grouped horizontal bars with intervals: accuracy, recovery, differences. */
import {
  type ChartText,
  el,
  heading,
  legend,
  linearScale,
  px,
  seriesColour,
  svgDocument,
  text,
  textWidth,
} from "./svg.js";

export interface BarChart extends ChartText {
  xLabel: string;
  /** Names of the bars of a group. */
  series: string[];
  groups: {
    name: string;
    note?: string;
    bars: ({ value: number; low?: number; high?: number } | null)[];
  }[];
  /** A line to compare with: 100 % recovery, 0 difference. */
  reference?: { value: number; label: string };
  zero?: boolean;
  format?: (value: number) => string;
  width?: number;
}

const BAR = 15;
const GAP = 14;

/** Bars from 0 (or from the reference line, for differences), with whiskers where there is an interval. */
export function barChart(chart: BarChart): string {
  const width = chart.width ?? 720;
  const title = heading(chart, width);
  const entries = chart.series.map((label, i) => ({ label, colour: seriesColour(i) }));
  const key = legend(chart.series.length > 1 ? entries : [], 16, title.height + 8, width - 40);
  const top = title.height + key.height + 20;
  const names = chart.groups.flatMap((g) => [g.name, g.note ?? ""]);
  const left = Math.min(240, 28 + Math.max(...names.map((n) => textWidth(n))));
  const groupHeight = BAR * chart.series.length + GAP;
  const height = top + chart.groups.length * groupHeight + 46;
  const bars = chart.groups.flatMap((g) => g.bars.filter((b) => b !== null));
  const ends = bars
    .flatMap((b) => [b.value, b.low ?? b.value, b.high ?? b.value])
    .filter(Number.isFinite);
  if (chart.reference) ends.push(chart.reference.value);
  if (chart.zero !== false) ends.push(0);
  const format = chart.format;
  const x = linearScale([Math.min(...ends), Math.max(...ends)], [left, width - 64], {
    count: 6,
    ...(format ? { format } : {}),
  });
  const bottom = top + chart.groups.length * groupHeight;
  let body = "";
  for (const { value, label } of x.ticks) {
    body += el("path", { class: "g", d: `M${px(x(value))} ${px(top - 4)}V${px(bottom)}` });
    body += text(x(value), bottom + 16, label, { anchor: "middle", class: "m" });
  }
  body += text((left + width - 64) / 2, bottom + 38, chart.xLabel, { anchor: "middle" });
  const origin = x(chart.zero === false ? (chart.reference?.value ?? 0) : 0);
  for (const [g, group] of chart.groups.entries()) {
    const y0 = top + g * groupHeight + GAP / 2;
    const middle = y0 + (BAR * chart.series.length) / 2;
    body += text(left - 10, middle + (group.note ? -2 : 4), group.name, { anchor: "end" });
    if (group.note)
      body += text(left - 10, middle + 12, group.note, { anchor: "end", class: "m", size: 10 });
    for (const [i, bar] of group.bars.entries()) {
      if (bar === null || !Number.isFinite(bar.value)) continue;
      const y = y0 + i * BAR;
      const at = x(bar.value);
      body += el("rect", {
        x: Math.min(origin, at),
        y: y + 1.5,
        width: Math.max(1, Math.abs(at - origin)),
        height: BAR - 3,
        rx: 2,
        style: `fill:${seriesColour(i)}`,
      });
      const whisker =
        bar.low !== undefined && bar.high !== undefined && Number.isFinite(bar.high - bar.low);
      if (whisker) {
        const [a, b] = [x(bar.low as number), x(bar.high as number)];
        const m = y + BAR / 2;
        body += el("path", {
          d: `M${px(a)} ${px(m)}H${px(b)}M${px(a)} ${px(m - 3)}v6M${px(b)} ${px(m - 3)}v6`,
          style: "stroke:var(--ink);stroke-width:1.3;fill:none",
        });
      }
      const right = Math.max(origin, at, whisker ? x(bar.high as number) : at);
      body += text(right + 5, y + BAR - 4, format ? format(bar.value) : bar.value.toPrecision(3), {
        size: 10,
      });
    }
  }
  if (chart.reference) {
    const at = x(chart.reference.value);
    body += el("path", {
      d: `M${px(at)} ${px(top - 4)}V${px(bottom)}`,
      style: "stroke:var(--ink);stroke-dasharray:4 3",
    });
    body += text(at, top - 8, chart.reference.label, { anchor: "middle", size: 10, class: "m" });
  }
  return svgDocument(width, height, chart.title, title.svg + key.svg + body);
}
