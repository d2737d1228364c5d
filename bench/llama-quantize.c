// Calls llama_model_quantize of a libllama that is already there: quantize <in.gguf> <out.gguf> <ftype number> <pure 0|1>
// The parameters are declared up to the last field that is set; the rest is room for what newer versions add.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct llama_model_quantize_params {
  int32_t nthread;
  int32_t ftype;
  int32_t output_tensor_type;
  int32_t token_embedding_type;
  bool allow_requantize;
  bool quantize_output_tensor;
  bool only_copy;
  bool pure;
  char rest[236];
};
struct llama_model_quantize_params llama_model_quantize_default_params(void);
uint32_t llama_model_quantize(const char *in, const char *out,
                              const struct llama_model_quantize_params *params);

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  struct llama_model_quantize_params params = llama_model_quantize_default_params();
  params.nthread = 1;
  params.ftype = atoi(argv[3]);
  params.pure = atoi(argv[4]) != 0;
  return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
}
