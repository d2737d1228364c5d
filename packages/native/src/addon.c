/*
 * The N-API surface: engines (an arena and a team of threads), programs, runs.
 *
 * An engine has a dispatcher thread that acts as thread 0 of asynchronous runs, so the event loop never blocks;
 * runSync uses the calling thread instead. Handles are JavaScript externals; their finalizers free what was not disposed.
 */
#define NAPI_VERSION 8
#include <node_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "ceilings.h"
#include "cpu.h"
#include "map_file.h"
#include "pace.h"
#include "pack.h"
#include "threads.h"
#include "validate.h"

#define HUGE_PAGE ((size_t)2 << 20)

/* In a sanitized build everything around the arena is out of bounds. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FENCE(from, bytes) ASAN_POISON_MEMORY_REGION(from, bytes)
#define UNFENCE(from, bytes) ASAN_UNPOISON_MEMORY_REGION(from, bytes)
#else
#define FENCE(from, bytes) ((void)0)
#define UNFENCE(from, bytes) ((void)0)
#endif

/* The mapping outlives the engine while JavaScript holds the ArrayBuffer. */
typedef struct {
  uint8_t *base; /* 2 MiB aligned */
  void *mapped;
  size_t mapped_bytes;
  _Atomic int references;
} arena_map;

typedef struct engine {
  arena_map *arena;
  nb_map *panels; /* part of the arena that is a mapped file, or NULL */
  nb_team *team;
  int threads, has_dispatcher, disposed;
  int64_t bytes;
  pthread_t dispatcher;
  napi_threadsafe_function done;
  napi_deferred deferred;
  napi_ref program_ref; /* keeps the program of a run alive */
  const nb_program *program;
  int busy; /* seen by the JavaScript thread only */
  int32_t status;
  _Atomic uint32_t jobs; /* runs handed to the dispatcher */
  _Atomic uint32_t asleep;
  _Atomic int quit;
} engine;

static const napi_type_tag engine_tag = {0x6e6962626c650001u, 0x656e67696e650000u};
static const napi_type_tag program_tag = {0x6e6962626c650002u, 0x70726f6772616d00u};

static napi_value fail(napi_env env, const char *code, const char *message) {
  napi_throw_error(env, code, message);
  return NULL;
}

/* ---- arena ---- */

static void release_arena(arena_map *a) {
  if (atomic_fetch_sub(&a->references, 1) > 1) return;
  UNFENCE(a->mapped, a->mapped_bytes);
  munmap(a->mapped, a->mapped_bytes);
  free(a);
}

#ifdef MAP_NORESERVE
#define ARENA_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#else
#define ARENA_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS)
#endif

static arena_map *map_arena(size_t bytes) {
  arena_map *a = malloc(sizeof *a);
  if (!a) return NULL;
  a->mapped_bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
  a->mapped = mmap(NULL, a->mapped_bytes, PROT_READ | PROT_WRITE, ARENA_FLAGS, -1, 0);
  if (a->mapped == MAP_FAILED) {
    free(a);
    return NULL;
  }
  a->base = (uint8_t *)(((uintptr_t)a->mapped + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
#ifdef MADV_HUGEPAGE
  madvise(a->base, a->mapped_bytes - HUGE_PAGE, MADV_HUGEPAGE);
#endif
  atomic_init(&a->references, 1);
  FENCE(a->mapped, (size_t)(a->base - (uint8_t *)a->mapped));
  FENCE(a->base + bytes, (size_t)((uint8_t *)a->mapped + a->mapped_bytes - (a->base + bytes)));
  return a;
}

static void buffer_finalize(napi_env env, void *data, void *hint) {
  (void)env;
  (void)data;
  release_arena(hint);
}

/* ---- dispatcher ---- */

static void *dispatch(void *arg) {
  engine *e = arg;
  uint32_t seen = 0;
  for (;;) {
    const int64_t start = nb_now();
    while (atomic_load(&e->jobs) == seen && nb_now() - start < 30000)
      for (int i = 0; i < 16; i++) nb_pause();
    atomic_store(&e->asleep, 1);
    while (atomic_load(&e->jobs) == seen) nb_wait(&e->jobs, seen);
    atomic_store(&e->asleep, 0);
    seen++;
    if (atomic_load(&e->quit)) return NULL;
    e->status = nb_team_run(e->team, e->program);
    napi_call_threadsafe_function(e->done, NULL, napi_tsfn_nonblocking);
  }
}

/* Status of a run during which the mapped weights were found to be gone. */
#define STATUS_LOST (-2)

static int32_t status_of(const engine *e, int32_t status) {
  return e->panels && atomic_load(&e->panels->lost) ? STATUS_LOST : status;
}

/* On the JavaScript thread: the run is over. */
static void settle(napi_env env, napi_value callback, void *context, void *data) {
  engine *e = context;
  (void)callback;
  (void)data;
  if (!env || !e->busy) return;
  napi_value status;
  e->busy = 0;
  napi_unref_threadsafe_function(env, e->done);
  napi_delete_reference(env, e->program_ref);
  napi_create_int32(env, status_of(e, e->status), &status);
  napi_resolve_deferred(env, e->deferred, status);
}

/* Puts plain memory in the place of the mapped file: fresh zeros. */
static void leave_panels(engine *e) {
  uint8_t *base = atomic_load(&e->panels->base);
  const size_t bytes = atomic_load(&e->panels->bytes);
  if (mmap(base, bytes, PROT_READ | PROT_WRITE, ARENA_FLAGS | MAP_FIXED, -1, 0) == MAP_FAILED) return; /* the file stays */
#ifdef MADV_HUGEPAGE
  madvise(base, bytes, MADV_HUGEPAGE);
#endif
  nb_map_forget(e->panels);
  e->panels = NULL;
}

static void stop_engine(engine *e) {
  if (e->disposed) return;
  e->disposed = 1;
  if (e->has_dispatcher) {
    atomic_store(&e->quit, 1);
    atomic_fetch_add(&e->jobs, 1);
    nb_wake(&e->jobs);
    pthread_join(e->dispatcher, NULL);
    napi_release_threadsafe_function(e->done, napi_tsfn_abort);
  }
  nb_team_destroy(e->team);
}

static void engine_finalize(napi_env env, void *data, void *hint) {
  engine *e = data;
  (void)env;
  (void)hint;
  stop_engine(e);
  if (e->panels) nb_map_forget(e->panels);
  release_arena(e->arena);
  free(e);
}

static int start_dispatcher(napi_env env, engine *e) {
  napi_value name;
  if (e->has_dispatcher) return 1;
  napi_create_string_utf8(env, "nibble", NAPI_AUTO_LENGTH, &name);
  if (napi_create_threadsafe_function(env, NULL, NULL, name, 0, 1, NULL, NULL, e, settle, &e->done) != napi_ok) return 0;
  napi_unref_threadsafe_function(env, e->done);
  if (pthread_create(&e->dispatcher, NULL, dispatch, e)) {
    napi_release_threadsafe_function(e->done, napi_tsfn_abort);
    return 0;
  }
  e->has_dispatcher = 1;
  return 1;
}

/* ---- arguments ---- */

static int arguments(napi_env env, napi_callback_info info, size_t count, napi_value *values) {
  size_t given = count;
  napi_get_cb_info(env, info, &given, values, NULL, NULL);
  if (given >= count) return 1;
  napi_throw_type_error(env, "usage", "too few arguments");
  return 0;
}

static void *handle_of(napi_env env, napi_value value, const napi_type_tag *tag) {
  bool matches = false;
  void *data = NULL;
  napi_valuetype type;
  if (napi_typeof(env, value, &type) == napi_ok && type == napi_external) {
    napi_check_object_type_tag(env, value, tag, &matches);
    if (matches) napi_get_value_external(env, value, &data);
  }
  if (!data) napi_throw_type_error(env, "usage", "not a handle of this kind");
  return data;
}

static engine *engine_of(napi_env env, napi_value value) {
  engine *e = handle_of(env, value, &engine_tag);
  if (e && e->disposed) {
    napi_throw_error(env, "disposed", "the engine has been disposed");
    return NULL;
  }
  return e;
}

/* ---- exports ---- */

/* variants(): { name, runs, needs, only }[], best first; only: why it has to be asked for, or "". */
static napi_value variants(napi_env env, napi_callback_info info) {
  napi_value list;
  (void)info;
  napi_create_array(env, &list);
  uint32_t i = 0;
  for (const nb_variant *v = nb_variants(); v->kernels; v++) {
    napi_value item, name, runs, needs, only;
    napi_create_object(env, &item);
    napi_create_string_utf8(env, v->kernels->name, NAPI_AUTO_LENGTH, &name);
    napi_get_boolean(env, v->runs(), &runs);
    napi_create_string_utf8(env, v->needs, NAPI_AUTO_LENGTH, &needs);
    napi_set_named_property(env, item, "name", name);
    napi_set_named_property(env, item, "runs", runs);
    napi_set_named_property(env, item, "needs", needs);
    napi_create_string_utf8(env, v->only ? v->only : "", NAPI_AUTO_LENGTH, &only);
    napi_set_named_property(env, item, "only", only);
    napi_set_element(env, list, i++, item);
  }
  return list;
}

/* create(arenaBytes, threads, variant): engine */
static napi_value create(napi_env env, napi_callback_info info) {
  napi_value args[3], result;
  double bytes;
  int32_t threads;
  char variant[32];
  if (!arguments(env, info, 3, args)) return NULL;
  if (napi_get_value_double(env, args[0], &bytes) != napi_ok || napi_get_value_int32(env, args[1], &threads) != napi_ok ||
      napi_get_value_string_utf8(env, args[2], variant, sizeof variant, NULL) != napi_ok) {
    return fail(env, "usage", "create(arenaBytes, threads, variant)");
  }
  if (!(bytes >= CONTROL_BYTES && bytes <= 1e14) || threads < 1 || threads > 1024) {
    return fail(env, "usage", "arenaBytes or threads out of range");
  }
  const nb_kernels *kernels = nb_find_variant(variant);
  if (!kernels) return fail(env, "variant", "this variant does not run on this processor");
  engine *e = calloc(1, sizeof *e);
  if (!e || !(e->arena = map_arena((size_t)bytes))) {
    free(e);
    return fail(env, "memory", "the system does not give an arena of this size");
  }
  e->bytes = (int64_t)bytes;
  e->threads = threads;
  e->team = nb_team_create(e->arena->base, e->bytes, threads, kernels);
  if (!e->team) {
    release_arena(e->arena);
    free(e);
    return fail(env, "threads", "the system does not start this many threads");
  }
  napi_create_external(env, e, engine_finalize, NULL, &result);
  napi_type_tag_object(env, result, &engine_tag);
  return result;
}

/* memory(engine): ArrayBuffer over the arena. To be called once an engine. */
static napi_value memory(napi_env env, napi_callback_info info) {
  napi_value args[1], result;
  engine *e;
  if (!arguments(env, info, 1, args) || !(e = engine_of(env, args[0]))) return NULL;
  atomic_fetch_add(&e->arena->references, 1);
  if (napi_create_external_arraybuffer(env, e->arena->base, (size_t)e->bytes, buffer_finalize, e->arena, &result) != napi_ok) {
    atomic_fetch_sub(&e->arena->references, 1);
    return fail(env, "memory", "this JavaScript engine cannot address an arena of this size");
  }
  return result;
}

static void program_finalize(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  free(((nb_program *)data)->words);
  free(data);
}

/* load(engine, Int32Array): program. Throws an error with code "program" and `word`. */
static napi_value load(napi_env env, napi_callback_info info) {
  napi_value args[2], result;
  napi_typedarray_type type;
  engine *e;
  size_t length;
  void *data;
  if (!arguments(env, info, 2, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (napi_get_typedarray_info(env, args[1], &type, &length, &data, NULL, NULL) != napi_ok || type != napi_int32_array) {
    return fail(env, "usage", "a program is an Int32Array");
  }
  nb_program *p = malloc(sizeof *p);
  int32_t *words = malloc(length * 4 + 4);
  if (!p || !words) {
    free(p);
    free(words);
    return fail(env, "memory", "out of memory");
  }
  memcpy(words, data, length * 4);
  *p = (nb_program){words, (int64_t)length};
  char message[256];
  int64_t word = 0;
  if (!nb_validate(words, p->count, e->bytes, e->threads, &word, message, sizeof message)) {
    napi_value error, text, code, at;
    free(words);
    free(p);
    napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &text);
    napi_create_string_utf8(env, "program", NAPI_AUTO_LENGTH, &code);
    napi_create_error(env, code, text, &error);
    napi_create_int64(env, word, &at);
    napi_set_named_property(env, error, "word", at);
    napi_throw(env, error);
    return NULL;
  }
  napi_create_external(env, p, program_finalize, NULL, &result);
  napi_type_tag_object(env, result, &program_tag);
  return result;
}

static int begin(napi_env env, napi_callback_info info, napi_value *args, engine **e, nb_program **p) {
  if (!arguments(env, info, 2, args) || !(*e = engine_of(env, args[0]))) return 0;
  if (!(*p = handle_of(env, args[1], &program_tag))) return 0;
  if ((*e)->busy) {
    napi_throw_error(env, "busy", "the engine is running a program");
    return 0;
  }
  return 1;
}

/* run(engine, program): Promise<status word>; -2: the mapped weights were cut short */
static napi_value run(napi_env env, napi_callback_info info) {
  napi_value args[2], promise;
  engine *e;
  nb_program *p;
  if (!begin(env, info, args, &e, &p)) return NULL;
  if (!start_dispatcher(env, e)) return fail(env, "threads", "the dispatcher thread does not start");
  if (napi_create_promise(env, &e->deferred, &promise) != napi_ok) return fail(env, "memory", "no promise");
  napi_create_reference(env, args[1], 1, &e->program_ref);
  napi_ref_threadsafe_function(env, e->done);
  e->busy = 1;
  e->program = p;
  atomic_fetch_add(&e->jobs, 1);
  if (atomic_load(&e->asleep)) nb_wake(&e->jobs);
  return promise;
}

/* runSync(engine, program): status word */
static napi_value run_sync(napi_env env, napi_callback_info info) {
  napi_value args[2], result;
  engine *e;
  nb_program *p;
  if (!begin(env, info, args, &e, &p)) return NULL;
  const int32_t status = nb_team_run(e->team, p);
  napi_create_int32(env, status_of(e, status), &result);
  return result;
}

/* dispose(engine): ends the threads and gives the memory back; views read zeros from then on. */
static napi_value dispose(napi_env env, napi_callback_info info) {
  napi_value args[1];
  engine *e;
  if (!arguments(env, info, 1, args) || !(e = handle_of(env, args[0], &engine_tag)) || e->disposed) return NULL;
  if (e->busy) return fail(env, "busy", "the engine is running a program");
  stop_engine(e);
  if (e->panels) leave_panels(e);
#ifdef MADV_DONTNEED
  madvise(e->arena->base, e->arena->mapped_bytes - HUGE_PAGE, MADV_DONTNEED);
#endif
  return NULL;
}

/* ---- files ---- */

static void map_finalize(napi_env env, void *data, void *hint) {
  (void)env;
  (void)data;
  nb_map_free(hint);
}

/* A path from JavaScript, to be freed; NULL when it is no string or holds a zero byte. */
static char *path_of(napi_env env, napi_value value) {
  size_t length;
  if (napi_get_value_string_utf8(env, value, NULL, 0, &length) != napi_ok) return NULL;
  char *path = malloc(length + 1);
  if (!path) return NULL;
  napi_get_value_string_utf8(env, value, path, length + 1, &length);
  if (strlen(path) == length) return path;
  free(path);
  return NULL;
}

/* A whole number of bytes, or -1. */
static int64_t bytes_of(napi_env env, napi_value value) {
  double bytes;
  if (napi_get_value_double(env, value, &bytes) != napi_ok || !(bytes >= 0 && bytes <= 1e15)) return -1;
  return (double)(int64_t)bytes == bytes ? (int64_t)bytes : -1;
}

/* mapFile(path, bytes): ArrayBuffer over a file of exactly this size; see map_file.h for the codes of its errors. */
static napi_value map_file(napi_env env, napi_callback_info info) {
  napi_value args[2], result;
  const char *code, *why;
  if (!arguments(env, info, 2, args)) return NULL;
  const int64_t bytes = bytes_of(env, args[1]);
  char *path = path_of(env, args[0]);
  if (!path || bytes < 0) {
    free(path);
    return fail(env, "usage", "mapFile(path, bytes)");
  }
  nb_map *map = nb_map_file(path, bytes, &code, &why);
  free(path);
  if (!map) return fail(env, code, why);
  if (napi_create_external_arraybuffer(env, map->base, (size_t)bytes, map_finalize, map, &result) != napi_ok) {
    nb_map_free(map);
    return fail(env, "memory", "this JavaScript engine cannot address a file of this size");
  }
  return result;
}

/*
 * dropPages(buffer of mapFile): takes what was read of the file out of this process's memory, it is read again when it is
 * used again. True while all bytes that were read were the file's; false after it was cut short (then they were zeros).
 */
static napi_value drop_pages(napi_env env, napi_callback_info info) {
  napi_value args[1], result;
  void *data = NULL;
  size_t length;
  nb_map *map;
  if (!arguments(env, info, 1, args)) return NULL;
  if (napi_get_arraybuffer_info(env, args[0], &data, &length) != napi_ok || !data || !(map = nb_map_at(data))) {
    return fail(env, "usage", "not a buffer of mapFile");
  }
  nb_map_drop(map);
  napi_get_boolean(env, !atomic_load(&map->lost), &result);
  return result;
}

/* Panels are summed in pieces, so that all threads can share them. */
#define SUM_PIECE ((int64_t)1 << 21)

typedef struct {
  uint8_t *at;
  int64_t bytes;
  uint64_t *sums;       /* to be written */
  const uint8_t *known; /* or, when set, to be compared with */
  _Atomic int64_t next;
  _Atomic int wrong;
} sum_job;

static int64_t sum_pieces(int64_t bytes) { return (bytes + SUM_PIECE - 1) / SUM_PIECE; }

static void sum_parts(void *arg, int thread) {
  sum_job *job = arg;
  const int64_t pieces = sum_pieces(job->bytes);
  (void)thread;
  for (int64_t i = atomic_fetch_add(&job->next, 1); i < pieces; i = atomic_fetch_add(&job->next, 1)) {
    const int64_t from = i * SUM_PIECE, bytes = job->bytes - from < SUM_PIECE ? job->bytes - from : SUM_PIECE;
    if (job->known) nb_map_populate(job->at + from, (size_t)bytes);
    const uint64_t sum = nb_checksum(job->at + from, bytes);
    if (job->sums) job->sums[i] = sum;
    else if (memcmp(&sum, job->known + i * 8, 8)) atomic_store(&job->wrong, 1);
  }
}

/* A part of the arena that a file may stand for. */
static int is_panels(const engine *e, int64_t line, int64_t bytes) {
  return bytes > 0 && bytes % MAP_GRAIN == 0 && line >= MAP_GRAIN / LINE && line % (MAP_GRAIN / LINE) == 0 &&
         line <= e->bytes / LINE && bytes <= e->bytes - line * LINE;
}

/* panelSums(engine, line, bytes): ArrayBuffer of a sum for every 2 MiB of these bytes of the arena. */
static napi_value panel_sums(napi_env env, napi_callback_info info) {
  napi_value args[3], result;
  engine *e;
  int64_t line;
  void *sums;
  if (!arguments(env, info, 3, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (e->busy) return fail(env, "busy", "the engine is running a program");
  const int64_t bytes = bytes_of(env, args[2]);
  if (napi_get_value_int64(env, args[1], &line) != napi_ok || !is_panels(e, line, bytes)) {
    return fail(env, "usage", "panelSums(engine, line, bytes)");
  }
  if (napi_create_arraybuffer(env, (size_t)sum_pieces(bytes) * 8, &sums, &result) != napi_ok) return fail(env, "memory", "out of memory");
  sum_job job = {.at = e->arena->base + line * LINE, .bytes = bytes, .sums = sums};
  nb_team_share(e->team, sum_parts, &job);
  return result;
}

/*
 * mapPanels(engine, path, fileBytes, offset, line, bytes, Uint8Array of sums): these bytes of the arena become those of the
 * file, without a copy; once an engine. False, and fresh zeros in the arena, when the sums say otherwise. Errors as mapFile.
 */
static napi_value map_panels(napi_env env, napi_callback_info info) {
  napi_value args[7], result;
  napi_typedarray_type type;
  engine *e;
  int64_t line;
  size_t length;
  void *sums;
  const char *code, *why;
  if (!arguments(env, info, 7, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (e->busy) return fail(env, "busy", "the engine is running a program");
  const int64_t file_bytes = bytes_of(env, args[2]), offset = bytes_of(env, args[3]), bytes = bytes_of(env, args[5]);
  if (napi_get_value_int64(env, args[4], &line) != napi_ok || !is_panels(e, line, bytes) || e->panels || offset < 0 ||
      offset % MAP_GRAIN || file_bytes < bytes || offset > file_bytes - bytes ||
      napi_get_typedarray_info(env, args[6], &type, &length, &sums, NULL, NULL) != napi_ok || type != napi_uint8_array ||
      (int64_t)length != sum_pieces(bytes) * 8) {
    return fail(env, "usage", "mapPanels(engine, path, fileBytes, offset, line, bytes, sums)");
  }
  char *path = path_of(env, args[1]);
  if (!path) return fail(env, "usage", "mapPanels needs a path");
  e->panels = nb_map_over(e->arena->base + line * LINE, path, file_bytes, offset, bytes, &code, &why);
  free(path);
  if (!e->panels) return fail(env, code, why);
  sum_job job = {.at = e->arena->base + line * LINE, .bytes = bytes, .known = sums};
  nb_team_share(e->team, sum_parts, &job);
  const int whole = !atomic_load(&job.wrong) && !atomic_load(&e->panels->lost);
  if (!whole) leave_panels(e);
  napi_get_boolean(env, whole, &result);
  return result;
}

/* Parts for every thread: one that is late leaves most of them to the others. */
#define PACK_PARTS 4

typedef struct {
  nb_pack pack;
  int mapped; /* the codes lie in a mapped file */
  _Atomic int next; /* parts given out */
} pack_job;

static void pack_parts(void *arg, int thread) {
  pack_job *job = arg;
  (void)thread;
  for (int part = atomic_fetch_add(&job->next, 1); part < job->pack.parts; part = atomic_fetch_add(&job->next, 1)) {
    if (job->mapped) {
      int64_t bytes;
      const uint8_t *from = nb_pack_part_source(&job->pack, part, &bytes);
      nb_map_populate(from, (size_t)bytes);
    }
    nb_pack_rows(&job->pack, part);
  }
}

/* pack(engine, source, targetLine, width, k, n, first, rows, interleaved): see pack.h. */
static napi_value pack(napi_env env, napi_callback_info info) {
  napi_value args[9];
  napi_typedarray_type type;
  engine *e;
  size_t length;
  void *data;
  int32_t line, numbers[6];
  if (!arguments(env, info, 9, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (e->busy) return fail(env, "busy", "the engine is running a program");
  if (napi_get_typedarray_info(env, args[1], &type, &length, &data, NULL, NULL) != napi_ok || type != napi_uint8_array ||
      napi_get_value_int32(env, args[2], &line) != napi_ok) {
    return fail(env, "usage", "pack(engine, Uint8Array, line, width, k, n, first, rows, interleaved)");
  }
  for (int i = 0; i < 6; i++) {
    if (napi_get_value_int32(env, args[3 + i], &numbers[i]) != napi_ok) return fail(env, "usage", "sizes are integers");
  }
  pack_job job = {.pack = {data, e->arena->base + (int64_t)line * LINE, numbers[0], numbers[5], e->threads * PACK_PARTS,
                           numbers[1], numbers[2], numbers[3], numbers[4]}};
  const nb_pack *p = &job.pack;
  if (!nb_pack_is_valid(p) || (int64_t)line * LINE < CONTROL_BYTES || (int64_t)length < nb_pack_source_bytes(p) ||
      nb_pack_target_bytes(p) > e->bytes - (int64_t)line * LINE) {
    return fail(env, "usage", "codes or panels do not fit");
  }
  job.mapped = nb_map_around(data) != NULL;
  nb_team_share(e->team, pack_parts, &job);
  return NULL;
}

/*
 * sparse(engine, fromLine, toLine): these lines are touched here and there, so that large pages would hold mostly nothing.
 */
static napi_value sparse(napi_env env, napi_callback_info info) {
  napi_value args[3];
  int64_t from, to;
  engine *e;
  if (!arguments(env, info, 3, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (napi_get_value_int64(env, args[1], &from) != napi_ok || napi_get_value_int64(env, args[2], &to) != napi_ok ||
      from < 0 || to < from || to > e->bytes / LINE) {
    return fail(env, "usage", "sparse(engine, fromLine, toLine)");
  }
#ifdef MADV_NOHUGEPAGE
  const int64_t page = sysconf(_SC_PAGESIZE), start = nb_round_up(from * LINE, page), end = to * LINE / page * page;
  if (start < end) madvise(e->arena->base + start, (size_t)(end - start), MADV_NOHUGEPAGE);
#endif
  return NULL;
}

/* schedule(engine, Int32Array): how many threads work, op by op; empty: as the machine allows (threads.h). For tests. */
static napi_value schedule(napi_env env, napi_callback_info info) {
  napi_value args[2];
  napi_typedarray_type type;
  engine *e;
  size_t length;
  void *data;
  if (!arguments(env, info, 2, args) || !(e = engine_of(env, args[0]))) return NULL;
  if (e->busy) return fail(env, "busy", "the engine is running a program");
  if (napi_get_typedarray_info(env, args[1], &type, &length, &data, NULL, NULL) != napi_ok || type != napi_int32_array) {
    return fail(env, "usage", "schedule(engine, Int32Array)");
  }
  if (!nb_team_schedule(e->team, data, (int64_t)length)) return fail(env, "memory", "out of memory");
  return NULL;
}

/* pace(threads, Float64Array of now, wall, worst, total): what pace.h decides after each of these windows. For tests. */
static napi_value pace(napi_env env, napi_callback_info info) {
  napi_value args[2], result;
  napi_typedarray_type type;
  int32_t threads;
  size_t length;
  void *data;
  if (!arguments(env, info, 2, args)) return NULL;
  if (napi_get_value_int32(env, args[0], &threads) != napi_ok || threads < 1 ||
      napi_get_typedarray_info(env, args[1], &type, &length, &data, NULL, NULL) != napi_ok || type != napi_float64_array) {
    return fail(env, "usage", "pace(threads, Float64Array)");
  }
  nb_pace p;
  nb_pace_init(&p, threads);
  napi_create_array(env, &result);
  for (size_t i = 0; i + 4 <= length; i += 4) {
    const double *w = (const double *)data + i;
    napi_value item;
    napi_create_int32(env, nb_pace_decide(&p, (int64_t)w[0], (int64_t)w[1], (int64_t)w[2], (int64_t)w[3]), &item);
    napi_set_element(env, result, (uint32_t)(i / 4), item);
  }
  return result;
}

/* ceiling(name, threads, variant): the machine's rate for one kind of work, per second, 0 when unknown; see ceilings.h. */
static napi_value ceiling(napi_env env, napi_callback_info info) {
  napi_value args[3], result;
  char name[32], variant[32];
  int32_t threads;
  if (!arguments(env, info, 3, args)) return NULL;
  if (napi_get_value_string_utf8(env, args[0], name, sizeof name, NULL) != napi_ok ||
      napi_get_value_int32(env, args[1], &threads) != napi_ok || threads < 1 || threads > 1024 ||
      napi_get_value_string_utf8(env, args[2], variant, sizeof variant, NULL) != napi_ok) {
    return fail(env, "usage", "ceiling(name, threads, variant)");
  }
  const nb_kernels *kernels = nb_find_variant(variant);
  if (!kernels) return fail(env, "variant", "this variant does not run on this processor");
  napi_create_double(env, nb_ceiling(name, threads, kernels), &result);
  return result;
}

static napi_value init(napi_env env, napi_value exports) {
  const napi_property_descriptor all[] = {
#define EXPORT(name, function) {name, NULL, function, NULL, NULL, NULL, napi_enumerable, NULL}
      EXPORT("variants", variants), EXPORT("create", create), EXPORT("memory", memory),   EXPORT("load", load),
      EXPORT("run", run),           EXPORT("runSync", run_sync), EXPORT("dispose", dispose), EXPORT("ceiling", ceiling),
      EXPORT("pack", pack),         EXPORT("sparse", sparse), EXPORT("schedule", schedule), EXPORT("pace", pace),
      EXPORT("mapFile", map_file),  EXPORT("dropPages", drop_pages),
      EXPORT("mapPanels", map_panels), EXPORT("panelSums", panel_sums),
#undef EXPORT
  };
  napi_define_properties(env, exports, sizeof all / sizeof all[0], all);
  return exports;
}

NAPI_MODULE(nibble, init)
