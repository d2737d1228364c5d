/**
 * A small writer of static SVG charts: scales, ticks, axes, legends, light and dark by the reader's preference. No script,
 * no font file, no network: a picture is one string that stands alone or inside a page. Same input, same bytes.
 */

/** Colours of series, told apart by colour-blind readers too (after Okabe and Ito 2008), on light and on dark paper. */
const SERIES_LIGHT = [
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#b0579a",
  "#8a6d00",
  "#2a93c9",
  "#6b6b6b",
  "#a03030",
];
const SERIES_DARK = [
  "#56b4e9",
  "#ff8c42",
  "#2fc79b",
  "#e08fc4",
  "#e6c229",
  "#8fd0f5",
  "#b5b5b5",
  "#ff7b7b",
];

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

function variables(
  paper: string,
  ink: string,
  muted: string,
  grid: string,
  series: string[],
): string {
  return `--paper:${paper};--ink:${ink};--muted:${muted};--grid:${grid};${series.map((c, i) => `--s${i}:${c}`).join(";")}`;
}

/** CSS of all charts; pages that hold several need it once, each file carries it anyway. */
export const CHART_STYLE =
  `.nb{${variables("#ffffff", "#1b1f24", "#5b6570", "#e3e6ea", SERIES_LIGHT)};font-family:${FONT};background:var(--paper)}` +
  `@media (prefers-color-scheme:dark){.nb{${variables("#14171b", "#e8eaed", "#9aa4af", "#2c3238", SERIES_DARK)}}}` +
  ".nb text{fill:var(--ink);font-size:12px;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}.nb .t{font-size:15px;font-weight:600}.nb .m{fill:var(--muted)}" +
  ".nb .g{stroke:var(--grid);fill:none}.nb .a{stroke:var(--muted);fill:none}";

/** Colour of series i as CSS. */
export function seriesColour(i: number): string {
  return `var(--s${i % SERIES_LIGHT.length})`;
}

export function escapeXml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** Coordinates with two decimals at most: short files, equal bytes everywhere. */
export function px(value: number): string {
  return String(Math.round(value * 100) / 100);
}

type Attributes = Record<string, string | number | undefined>;

/** One element. Numbers are rounded to a hundredth of a pixel. */
export function el(name: string, attributes: Attributes, content?: string): string {
  let out = `<${name}`;
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined) continue;
    out += ` ${key}="${typeof value === "number" ? px(value) : escapeXml(value)}"`;
  }
  return content === undefined ? `${out}/>` : `${out}>${content}</${name}>`;
}

export interface TextOptions {
  anchor?: "start" | "middle" | "end";
  class?: string;
  fill?: string;
  rotate?: number;
  size?: number;
}

export function text(x: number, y: number, content: string, options: TextOptions = {}): string {
  return el(
    "text",
    {
      x,
      y,
      "text-anchor": options.anchor === "start" ? undefined : options.anchor,
      class: options.class,
      style:
        [
          options.fill ? `fill:${options.fill}` : "",
          options.size ? `font-size:${options.size}px` : "",
        ]
          .filter((s) => s !== "")
          .join(";") || undefined,
      transform:
        options.rotate === undefined ? undefined : `rotate(${options.rotate} ${px(x)} ${px(y)})`,
    },
    escapeXml(content),
  );
}

/** Width of a text in pixels, roughly: enough for legends and margins. */
export function textWidth(content: string, size = 12): number {
  let width = 0;
  for (const c of content)
    width += /[il.,:;|'’ ]/.test(c) ? 0.32 : /[A-Z%MW@m]/.test(c) ? 0.74 : 0.57;
  return width * size;
}

export interface Scale {
  (value: number): number;
  ticks: { value: number; label: string }[];
}

/** Round steps 1, 2, 5 x 10^k: about `count` of them between the ends. */
function stepFor(low: number, high: number, count: number): number {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const unit = raw / power;
  return (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10) * power;
}

/** A number for a tick or a label: no more digits than it needs. */
export function formatNumber(value: number, step = Math.abs(value) / 100): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) {
    const [mantissa = "", exponent = ""] = value.toExponential(1).split("e");
    return `${mantissa.replace(/\.0$/, "")}e${Number(exponent)}`;
  }
  const decimals = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  return value.toFixed(decimals);
}

/** Linear scale from a domain (widened to round numbers) to pixels. */
export function linearScale(
  [low, high]: [number, number],
  [from, to]: [number, number],
  {
    count = 5,
    nice = true,
    format,
  }: { count?: number; nice?: boolean; format?: (v: number) => string } = {},
): Scale {
  if (!(high > low)) {
    const pad = Math.abs(low) || 1;
    [low, high] = [low - pad / 2, low + pad / 2];
  }
  const step = stepFor(low, high, count);
  const first = nice ? Math.floor(low / step + 1e-9) : Math.ceil(low / step - 1e-9);
  const last = nice ? Math.ceil(high / step - 1e-9) : Math.floor(high / step + 1e-9);
  const [a, b] = nice ? [first * step, last * step] : [low, high];
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return { value, label: format ? format(value) : formatNumber(value, step) };
  });
  return Object.assign((v: number) => from + ((v - a) / (b - a)) * (to - from), { ticks });
}

/** Logarithmic scale; ticks at 1, 2, 5 x 10^k where they fit, else at powers of ten. */
export function logScale([low, high]: [number, number], [from, to]: [number, number]): Scale {
  const [a, b] = [Math.log10(low), Math.log10(high > low ? high : low * 2)];
  const span = b - a;
  const pad = span * 0.04 || 0.1;
  const [start, end] = [a - pad, b + pad];
  const units =
    span > 5
      ? [1]
      : span > 2.2
        ? [1, 3]
        : span > 1.5
          ? [1, 2, 5]
          : span > 0.7
            ? [1, 1.5, 2, 3, 5, 7]
            : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
  const every = span > 9 ? Math.ceil(span / 6) : 1;
  const ticks: Scale["ticks"] = [];
  for (let k = Math.floor(start); k <= Math.ceil(end); k++) {
    if (k % every !== 0) continue;
    for (const unit of units) {
      const value = unit * 10 ** k;
      const at = Math.log10(value);
      if (at >= start && at <= end) ticks.push({ value, label: formatNumber(value, value / 10) });
    }
  }
  // Within a factor of two a logarithmic axis is nearly linear, and so are its round numbers.
  if (span < 0.3) {
    ticks.splice(0, ticks.length, ...linearScale([low, 10 ** b], [0, 1], { nice: false }).ticks);
  }
  return Object.assign(
    (v: number) => from + ((Math.log10(Math.max(v, 1e-300)) - start) / (end - start)) * (to - from),
    { ticks },
  );
}

export interface Frame {
  width: number;
  height: number;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

export interface AxisLabels {
  x: string;
  y: string;
}

/** Grid lines, ticks and labels of both axes. */
export function axes(frame: Frame, x: Scale | null, y: Scale | null, labels: AxisLabels): string {
  const { width, height, left, right, top, bottom } = frame;
  const [x0, x1, y0, y1] = [left, width - right, height - bottom, top];
  let out = "";
  for (const { value, label } of y?.ticks ?? []) {
    const at = (y as Scale)(value);
    if (at > y0 + 0.5 || at < y1 - 0.5) continue;
    out += el("path", { class: "g", d: `M${px(x0)} ${px(at)}H${px(x1)}` });
    out += text(x0 - 6, at + 4, label, { anchor: "end", class: "m" });
  }
  for (const { value, label } of x?.ticks ?? []) {
    const at = (x as Scale)(value);
    if (at < x0 - 0.5 || at > x1 + 0.5) continue;
    out += el("path", { class: "g", d: `M${px(at)} ${px(y0)}V${px(y1)}` });
    out += text(at, y0 + 17, label, { anchor: "middle", class: "m" });
  }
  out += el("path", { class: "a", d: `M${px(x0)} ${px(y0)}H${px(x1)}` });
  out += text((x0 + x1) / 2, height - 8, labels.x, { anchor: "middle" });
  out += text(16, (y0 + y1) / 2, labels.y, { anchor: "middle", rotate: -90 });
  return out;
}

export interface LegendEntry {
  label: string;
  colour: string;
  dash?: string | undefined;
}

/** One line of entries from the right edge, above the plot; wraps when it is too long. Returns its height too. */
export function legend(
  entries: LegendEntry[],
  x: number,
  y: number,
  width: number,
): { svg: string; height: number } {
  let svg = "";
  let at = x;
  let row = 0;
  for (const { label, colour, dash } of entries) {
    const need = 34 + textWidth(label);
    if (at > x && at + need > x + width) {
      at = x;
      row++;
    }
    const baseline = y + row * 18;
    svg += el("path", {
      d: `M${px(at)} ${px(baseline - 4)}h18`,
      style: `stroke:${colour};stroke-width:3${dash ? `;stroke-dasharray:${dash}` : ""}`,
    });
    svg += text(at + 23, baseline, label);
    at += need;
  }
  return { svg, height: entries.length > 0 ? (row + 1) * 18 : 0 };
}

export interface ChartText {
  title: string;
  /** What the reader should see, in a sentence. */
  subtitle?: string;
}

/** Breaks a sentence into lines of at most `width` pixels. */
export function wrap(content: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of content.split(" ")) {
    const last = lines[lines.length - 1];
    if (last !== undefined && textWidth(`${last} ${word}`) <= width)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Title and subtitle at the top left; `height` is where the chart may begin. */
export function heading(
  { title, subtitle }: ChartText,
  width: number,
): { svg: string; height: number } {
  let svg = text(16, 24, title, { class: "t" });
  let y = 24;
  for (const line of subtitle ? wrap(subtitle, width - 32) : []) {
    y += 18;
    svg += text(16, y, line, { class: "m" });
  }
  return { svg, height: y + 12 };
}

/** A whole picture. `description` is what screen readers say. */
export function svgDocument(
  width: number,
  height: number,
  description: string,
  content: string,
): string {
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" class="nb" viewBox="0 0 ${px(width)} ${px(height)}" ` +
    `width="${px(width)}" height="${px(height)}" role="img" aria-label="${escapeXml(description)}">` +
    `<style>${CHART_STYLE}</style>` +
    el("rect", { width, height, style: "fill:var(--paper)" }) +
    `${content}</svg>`
  );
}
