/** `nibble list`: what there is, from the registries. */
import { nearestName, UsageError } from "../../core/errors.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

type Row = Record<string, unknown> & { id: string };

const LISTS: Record<string, () => Promise<Row[]>> = {
  async methods() {
    const { methods } = await import("../../methods/index.js");
    return [...methods].map(({ id, kind, title, paper, summary }) => ({
      id,
      kind,
      title,
      summary,
      paper,
    }));
  },
  async presets() {
    const { presets } = await import("../../recipe/presets.js");
    return presets().map(({ id, summary, recipe }) => ({ id, summary, recipe }));
  },
  async formats() {
    const { formats } = await import("../../formats/index.js");
    return [...formats].map(({ id, title, files, reads, writes }) => ({
      id,
      reads,
      writes,
      title,
      files,
    }));
  },
  async kv() {
    const { KV_PRESET_NAMES, kvPreset } = await import("../../kv/presets.js");
    const { kvCodecs } = await import("../../kv/codecs/index.js");
    const { retentions } = await import("../../kv/retention/index.js");
    return [
      ...KV_PRESET_NAMES.map((id) => ({ id, kind: "preset", recipe: kvPreset(id) })),
      ...[...kvCodecs].map(({ id, summary, paper }) => ({ id, kind: "codec", summary, paper })),
      ...[...retentions].map(({ id, summary, paper }) => ({
        id,
        kind: "retention",
        summary,
        paper,
      })),
    ];
  },
  async tasks() {
    const { tasks } = await import("../../eval/tasks/index.js");
    const { gsm8k } = await import("../../eval/generation-task.js");
    return [...tasks, { ...gsm8k, metric: "exact-match" }].map(({ id, title, paper, metric }) => ({
      id,
      title,
      metric,
      paper,
    }));
  },
};

export const list = defineVerb({
  name: "list",
  summary: "list methods, presets, formats, caches or tasks",
  examples: ["nibble list", "nibble list presets", "nibble list methods --json"],
  define(command) {
    command.argument("[what]", Object.keys(LISTS).join(", "));
  },
  async run(_context, [what]) {
    if (what !== undefined && !Object.hasOwn(LISTS, what)) {
      const near = nearestName(what, Object.keys(LISTS));
      throw new UsageError(`there is no list "${what}"`, {
        hint: near ? `Did you mean "${near}"?` : `Lists: ${Object.keys(LISTS).join(", ")}.`,
      });
    }
    const names = what === undefined ? Object.keys(LISTS) : [what];
    const result: Record<string, Row[]> = {};
    for (const name of names) result[name] = (await LISTS[name]?.()) ?? [];
    const text = names
      .map((name) => {
        const rows = table((result[name] ?? []).map(cells), names.length > 1 ? "  " : "");
        return names.length > 1 ? `${name}\n${rows}` : rows;
      })
      .join("\n\n");
    return { result: what === undefined ? result : { [what]: result[what] }, text };
  },
});

/** Texts of a row; whole recipes are for --json. */
function cells(row: Row): string[] {
  return Object.entries(row).flatMap(([key, value]) => {
    if (key === "recipe") return "k" in (value as object) ? [JSON.stringify(value)] : [];
    if (typeof value === "boolean") return [value ? key : "-"];
    return [String(value)];
  });
}
