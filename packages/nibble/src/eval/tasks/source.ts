/**
 * Where the items of a task come from: `<task-dir>/<id>.jsonl`, else the data set on the hub. Files of the hub may be
 * JSON lines or parquet. Node only.
 */
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { FormatError, ModelError } from "../../core/errors.js";
import { checkItem, jsonLines, parseItems } from "./items.js";
import type { HubSource, Task, TaskItem } from "./task.js";

/** Bytes of one file of a data set on the hub. */
export type FetchDataset = (dataset: string, file: string) => Promise<Uint8Array>;

export interface ItemSourceOptions {
  taskDir?: string;
  /** The first n items. */
  limit?: number;
  /** How files come from the hub; without it only the task folder is looked at. */
  fetchDataset?: FetchDataset;
}

async function readIfThere(path: string): Promise<string | null> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

/**
 * Items of a task.
 * @throws ModelError code "task-missing" when neither place has them; FormatError code "task-data" for bad data
 */
export async function loadTaskItems(task: Task, options: ItemSourceOptions): Promise<TaskItem[]> {
  const name = `${task.id}.jsonl`;
  if (options.taskDir !== undefined) {
    const text = await readIfThere(join(options.taskDir, name));
    if (text !== null) return parseItems(task, text, name, options.limit);
  }
  const place =
    options.taskDir === undefined ? "no task folder was given" : `the task folder has no ${name}`;
  if (!task.hub || !options.fetchDataset) {
    throw new ModelError(
      `${task.id}: ${place}${task.hub ? "" : ", and its data is not on the hub in a form that can be read"}`,
      { hint: `put ${name} into a folder and name it with --task-dir` },
      "task-missing",
    );
  }
  const bytes = await options.fetchDataset(task.hub.dataset, task.hub.file);
  return hubItems(task, task.hub, bytes, options.limit);
}

/** Items of a file of the hub. @throws FormatError code "task-data" naming file and row */
export async function hubItems(
  task: Task,
  hub: HubSource,
  bytes: Uint8Array,
  limit?: number,
): Promise<TaskItem[]> {
  const file = `${hub.dataset}/${basename(hub.file)}`;
  const rows = hub.file.endsWith(".parquet")
    ? await parquetRows(bytes, file)
    : Array.from(
        jsonLines(new TextDecoder().decode(bytes), file),
        ({ value }) => value as Record<string, unknown>,
      );
  if (rows.length === 0) throw new FormatError("holds no rows", { place: file }, "task-data");
  const items = rows.map((row, i) => {
    const place = `${file}: row ${i + 1}`;
    try {
      return checkItem(task, hub.convert(row), place);
    } catch (cause) {
      if (cause instanceof FormatError) throw cause;
      throw new FormatError((cause as Error).message, { place, cause }, "task-data");
    }
  });
  return limit === undefined ? items : items.slice(0, limit);
}

/** Rows of a parquet file. @throws FormatError */
export async function parquetRows(
  bytes: Uint8Array,
  file: string,
): Promise<Record<string, unknown>[]> {
  const { parquetReadObjects } = await import("hyparquet");
  try {
    return await parquetReadObjects({ file: new Uint8Array(bytes).buffer });
  } catch (cause) {
    throw new FormatError(
      `is no readable parquet file (${(cause as Error).message})`,
      { place: file, cause },
      "task-data",
    );
  }
}
