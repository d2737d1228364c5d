/*
 * One run of one program, for an emulator: reads { threads, words, arena bytes } as i32, the words and the arena from standard
 * input, runs the NEON kernels on them, and writes the status word and the arena to standard output. Exit code 2 and a
 * line on standard error when the program is refused. scripts/emulate.mjs builds it for arm64 and drives it.
 */
#include <stdio.h>
#include <stdlib.h>
#include "../src/threads.h"
#include "../src/validate.h"

static int read_all(void *to, size_t bytes) { return fread(to, 1, bytes, stdin) == bytes; }

int main(void) {
  int32_t head[3];
  if (!read_all(head, sizeof head) || head[0] < 1 || head[1] < 1 || head[2] < CONTROL_BYTES) return 1;
  const size_t bytes = (size_t)head[2];
  int32_t *words = malloc((size_t)head[1] * 4);
  uint8_t *arena = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!words || !arena || !read_all(words, (size_t)head[1] * 4) || !read_all(arena, bytes)) return 1;
  char message[256];
  int64_t word = 0;
  if (!nb_validate(words, head[1], (int64_t)bytes, head[0], &word, message, sizeof message)) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  nb_team *team = nb_team_create(arena, (int64_t)bytes, head[0], &nb_kernels_neon);
  if (!team) return 1;
  const nb_program program = {words, head[1]};
  const int32_t status = nb_team_run(team, &program);
  nb_team_destroy(team);
  return fwrite(&status, 4, 1, stdout) == 1 && fwrite(arena, 1, bytes, stdout) == bytes ? 0 : 1;
}
