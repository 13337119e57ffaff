/* A libllama with the functions, structs and log lines of llama.cpp at b9993 that logits are read by (llama.h).
 *
 * Its model has 50 tokens, and its logits are a formula of all tokens before (``__init__.py`` has it in Python). Parts
 * of the file's name decide what it does. Compiled with -DOLDER, the structs are those of 2025-01; with -DSTRANGE, the
 * defaults are others than any version has had.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 50, BOS = 1, MOST = 8192 };

struct override { const char * pattern; void * buft; };

struct llama_model_params {
    void * devices;
#ifndef OLDER
    const struct override * tensor_buft_overrides;
#endif
    int32_t n_gpu_layers;
    int32_t split_mode;
    int32_t main_gpu;
    const float * tensor_split;
    void * callbacks[3];
    bool flags[8];
};

struct llama_context_params {
    uint32_t n_ctx, n_batch, n_ubatch, n_seq_max;
#ifndef OLDER
    uint32_t n_rs_seq, n_outputs_max;
#endif
    int32_t n_threads, n_threads_batch;
#ifndef OLDER
    int32_t ctx_type;
#endif
    int32_t rope_scaling_type, pooling_type, attention_type;
#ifndef OLDER
    int32_t flash_attn_type;
#endif
    float rope_freq_base, rope_freq_scale, yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void * cb_eval, * cb_eval_user_data;
    int32_t type_k, type_v;
    void * abort_callback, * abort_callback_data;
    bool flags[8];
};

struct llama_batch {
    int32_t n_tokens;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int8_t * logits;
};

struct model { double noise; int shift; bool nan; };
struct context { struct model * model; struct llama_context_params params; double state; int length; float * rows; };

static struct model model;
static struct context context;

void llama_backend_init(void) {}

struct llama_model_params llama_model_default_params(void) {
    struct llama_model_params params;
    memset(&params, 0, sizeof params);
    params.n_gpu_layers = -1;
    params.split_mode = 1;
    return params;
}

struct llama_context_params llama_context_default_params(void) {
    struct llama_context_params params;
    memset(&params, 0, sizeof params);
    params.n_ctx = 512;
#ifdef STRANGE
    params.n_ctx = 4096;
#endif
    params.n_batch = 2048;
    params.n_ubatch = 512;
    params.n_seq_max = 1;
    params.n_threads = params.n_threads_batch = 4;
    params.rope_scaling_type = params.pooling_type = params.attention_type = -1;
#ifndef OLDER
    params.flash_attn_type = -1;
#endif
    params.yarn_ext_factor = params.yarn_attn_factor = params.yarn_beta_fast = params.yarn_beta_slow = -1;
    params.defrag_thold = -1;
    params.type_k = params.type_v = 1;
    params.flags[1] = params.flags[2] = params.flags[3] = params.flags[4] = true;
    return params;
}

struct model * llama_model_load_from_file(const char * path, struct llama_model_params params) {
    fprintf(stderr, "n_gpu_layers = %d", params.n_gpu_layers);
    if (params.tensor_split) fprintf(stderr, ", split %.1f/%.1f", params.tensor_split[0], params.tensor_split[1]);
#ifndef OLDER
    for (const struct override * each = params.tensor_buft_overrides; each && each->pattern; each++)
        fprintf(stderr, ", %s on %s", each->pattern, (const char *) each->buft);
#endif
    fprintf(stderr, "\n");
    if (strstr(path, "aborts")) {
        fprintf(stderr, "/src/ggml.c:17: GGML_ASSERT(ne00 == ne10) failed\n");
        abort();
    }
    if (strstr(path, "too-large")) {
        fprintf(stderr, "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9\n");
        return NULL;
    }
    model.noise = strstr(path, "q8_0") ? 0.05 : strstr(path, "q4_0") ? 0.3 : 0;
    model.shift = strstr(path, "other-tokens") ? 1 : 0;
    model.nan = strstr(path, "no-number") != NULL;
    return &model;
}

struct context * llama_init_from_model(struct model * of, struct llama_context_params params) {
    const char * kv = params.type_k == 8 && params.type_v == 8 ? "q8_0" : params.type_k == 1 ? "f16" : "?";
    fprintf(stderr, "llama_kv_cache: size = 1.00 MiB, K (%s): 0.50 MiB, V (%s): 0.50 MiB\n", kv, kv);
#ifndef OLDER
    const char * flash = params.flash_attn_type < 0 ? "auto" : params.flash_attn_type ? "enabled" : "disabled";
    fprintf(stderr, "llama_context: flash_attn    = %s\n", flash);
#endif
    context = (struct context) { of, params, 0, 0, malloc(sizeof(float) * VOCABULARY * params.n_batch) };
    return &context;
}

uint32_t llama_n_ctx(const struct context * of) { return of->params.n_ctx; }
uint32_t llama_n_batch(const struct context * of) { return of->params.n_batch; }
uint32_t llama_n_ubatch(const struct context * of) { return of->params.n_ubatch; }
void llama_set_n_threads(struct context * of, int32_t one, int32_t many) { of->params.n_threads = one < many ? one : many; }
size_t llama_max_devices(void) { return 16; }
void * ggml_backend_cpu_buffer_type(void) { return "host"; }
const struct model * llama_model_get_vocab(const struct model * of) { return of; }
int32_t llama_vocab_n_tokens(const struct model * of) { (void) of; return VOCABULARY; }
int32_t llama_vocab_bos(const struct model * of) { (void) of; return BOS; }
bool llama_vocab_get_add_bos(const struct model * of) { (void) of; return true; }

int32_t llama_tokenize(const struct model * of, const char * text, int32_t size, int32_t * tokens, int32_t most,
                       bool add_special, bool parse_special) {
    if (size > most || add_special || parse_special) return -size;
    for (int32_t place = 0; place < size; place++)
        tokens[place] = 2 + ((unsigned char) text[place] + of->shift) % (VOCABULARY - 2);
    return size;
}

struct llama_batch llama_batch_init(int32_t size, int32_t embd, int32_t sequences) {
    (void) embd, (void) sequences;
    return (struct llama_batch) { 0, calloc(size, 4), NULL, calloc(size, 4), calloc(size, 4), calloc(size + 1, 8), calloc(size, 1) };
}

void llama_batch_free(struct llama_batch batch) {
    free(batch.token), free(batch.pos), free(batch.n_seq_id), free(batch.seq_id), free(batch.logits);
}

#ifdef OLDER
void llama_kv_cache_clear(struct context * of) { of->state = of->length = 0; }
#else
struct context * llama_get_memory(struct context * of) { return of; }
void llama_memory_clear(struct context * of, bool data) { if (data) of->state = of->length = 0; }
#endif

int32_t llama_decode(struct context * of, struct llama_batch batch) {
    if (batch.n_tokens > (int32_t) of->params.n_ubatch || of->length + batch.n_tokens > (int32_t) of->params.n_ctx) return 1;
    for (int32_t place = 0; place < batch.n_tokens; place++) {
        if (batch.pos[place] != of->length++ || batch.n_seq_id[place] != 1 || batch.seq_id[place][0] != 0) return -1;
        of->state = 0.5 * of->state + batch.token[place];
        float * row = of->rows + place * VOCABULARY;
        for (int32_t token = 0; token < VOCABULARY; token++) {
            row[token] = 3 * sin(1.3 * of->state + token) + of->model->noise * cos(2.1 * of->state + token * token);
            if (!batch.logits[place] || of->model->nan) row[token] = NAN; /* nobody may read what was not asked for */
        }
    }
    return 0;
}

float * llama_get_logits_ith(struct context * of, int32_t place) { return of->rows + place * VOCABULARY; }
