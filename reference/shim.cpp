// One small C interface over llama.h as it was in any year, compiled against the headers of the tree that it is loaded with.
//
// What a header declares is found out by `bitnet_cpp_build.py` and arrives as HAVE_… macros. Nothing here computes: it
// loads, evaluates, and hands out logits, graph nodes and decoded tensors exactly as the library left them.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ggml.h"
#include "ggml-backend.h"
#include "llama.h"
#if __has_include("gguf.h")
#include "gguf.h"
#endif

#if defined(HAVE_llama_model_load_from_file)
#define LOAD llama_model_load_from_file
#define FREE_MODEL llama_model_free
#else
#define LOAD llama_load_model_from_file
#define FREE_MODEL llama_free_model
#endif
#if defined(HAVE_llama_init_from_model)
#define MAKE_CONTEXT llama_init_from_model
#else
#define MAKE_CONTEXT llama_new_context_with_model
#endif
#if defined(HAVE_llama_model_get_vocab)
#define VOCABULARY(model) llama_model_get_vocab(model)
#define N_VOCAB(model) llama_vocab_n_tokens(llama_model_get_vocab(model))
#else
#define VOCABULARY(model) (model)
#define N_VOCAB(model) llama_n_vocab(model)
#endif

extern "C" {

// Whether a node is wanted, then its values: contiguous f32, extents fastest first.
typedef int (*shim_wanted)(const char * name, const char * operation);
typedef void (*shim_record)(const char * name, const char * operation, const float * data, const int64_t * extents);

struct shim {
    std::string path;
    llama_model * model = nullptr;
    llama_context * context = nullptr;
    shim_wanted wanted = nullptr;
    shim_record record = nullptr;
    std::vector<float> values;
    std::string trouble;
};

static std::string first_error;

static void log_line(enum ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN) {
        fputs(text, stderr);
    }
    if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
        first_error = text;
    }
}

const char * shim_error() { return first_error.c_str(); }

const char * shim_trouble(shim * s) { return s->trouble.c_str(); }

const char * shim_system() { return llama_print_system_info(); }

shim * shim_open(const char * path, int vocab_only) {
    first_error.clear();
    llama_log_set(log_line, nullptr);
    static const bool ready = (llama_backend_init(), true);
    (void) ready;
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.vocab_only = vocab_only != 0;
    llama_model * model = LOAD(path, params);
    if (model == nullptr) {
        return nullptr;
    }
    shim * s = new shim;
    s->path = path;
    s->model = model;
    return s;
}

void shim_close(shim * s) {
    if (s->context != nullptr) {
        llama_free(s->context);
    }
    FREE_MODEL(s->model);
    delete s;
}

int shim_n_vocab(shim * s) { return N_VOCAB(s->model); }

int shim_meta(shim * s, const char * key, char * out, int room) {
    return llama_model_meta_val_str(s->model, key, out, room);
}

int shim_tokenize(shim * s, const char * text, int n, int32_t * ids, int room, int add_special, int parse_special) {
    return llama_tokenize(VOCABULARY(s->model), text, n, ids, room, add_special != 0, parse_special != 0);
}

static bool on_node(ggml_tensor * node, bool ask, void * data) {
    shim * s = static_cast<shim *>(data);
    const char * name = ggml_get_name(node);
    const char * operation = ggml_op_desc(node);
    if (!s->wanted(name, operation)) {
        return !ask;
    }
    if (ask) {
        return true;
    }
    if (node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node)) {
        if (s->trouble.empty()) {
            s->trouble = std::string(name) + " is not contiguous float32";
        }
        return true;
    }
    s->values.resize(ggml_nelements(node));
    ggml_backend_tensor_get(node, s->values.data(), 0, ggml_nbytes(node));
    s->record(name, operation, s->values.data(), node->ne);
    return true;
}

// A fresh context: an empty cache. Returns 0, or -1 where the library makes none.
int shim_begin(shim * s, int n_ctx, int n_batch, int n_ubatch, int n_threads, int kv_f16, shim_wanted wanted, shim_record record) {
    if (s->context != nullptr) {
        llama_free(s->context);
    }
    s->trouble.clear();
    first_error.clear();
    s->wanted = wanted;
    s->record = record;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = n_batch;
    params.n_ubatch = n_ubatch;
    params.n_threads = n_threads;
    params.n_threads_batch = n_threads;
    params.type_k = params.type_v = kv_f16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    params.offload_kqv = false;
#if defined(HAVE_flash_attn_type)
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
#elif defined(HAVE_flash_attn)
    params.flash_attn = false;
#endif
#if defined(HAVE_op_offload)
    params.op_offload = false;
#endif
    if (wanted != nullptr) {
        params.cb_eval = on_node;
        params.cb_eval_user_data = s;
    }
    s->context = MAKE_CONTEXT(s->model, params);
    return s->context == nullptr ? -1 : 0;
}

// Tokens at consecutive positions, and their logits [n, n_vocab]. Returns what llama_decode does.
int shim_decode(shim * s, const int32_t * tokens, int n, int position, float * logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const int code = llama_decode(s->context, batch);
    if (code == 0) {
        std::memcpy(logits, llama_get_logits(s->context), sizeof(float) * size_t(n) * N_VOCAB(s->model));
    }
    llama_batch_free(batch);
    return code;
}

// ---- tensors of the file, by the library's own parser and decoder ------------------------------------------------------

struct shim_file {
    gguf_context * file = nullptr;
    ggml_context * tensors = nullptr;
};

static shim_file open_file(const char * path) {
    shim_file f;
    gguf_init_params params;
    params.no_alloc = true;
    params.ctx = &f.tensors;
    f.file = gguf_init_from_file(path, params);
    return f;
}

static void close_file(shim_file & f) {
    if (f.tensors != nullptr) {
        ggml_free(f.tensors);
    }
    if (f.file != nullptr) {
        gguf_free(f.file);
    }
}

// Type name and extents of a tensor. Returns 0, or -1 where the file has none of that name.
int shim_tensor(shim * s, const char * name, char * type, int room, int64_t * extents) {
    shim_file f = open_file(s->path.c_str());
    ggml_tensor * t = f.tensors == nullptr ? nullptr : ggml_get_tensor(f.tensors, name);
    if (t != nullptr) {
        snprintf(type, room, "%s", ggml_type_name(t->type));
        std::memcpy(extents, t->ne, sizeof(t->ne));
    }
    close_file(f);
    return t == nullptr ? -1 : 0;
}

// Decoded values of a tensor. Returns 0; -1 unreadable; -2 no decoder.
int shim_weights(shim * s, const char * name, float * out) {
    shim_file f = open_file(s->path.c_str());
    ggml_tensor * t = f.tensors == nullptr ? nullptr : ggml_get_tensor(f.tensors, name);
    int result = -1;
    if (t != nullptr) {
        const size_t size = ggml_nbytes(t);
        std::vector<uint8_t> raw(size);
        const size_t offset = gguf_get_data_offset(f.file) + gguf_get_tensor_offset(f.file, gguf_find_tensor(f.file, name));
        FILE * file = fopen(s->path.c_str(), "rb");
        if (file != nullptr && fseek(file, long(offset), SEEK_SET) == 0 && fread(raw.data(), 1, size, file) == size) {
            result = -2;
            const int64_t n = ggml_nelements(t);
            const auto * traits = ggml_get_type_traits(t->type);
            if (t->type == GGML_TYPE_F32) {
                std::memcpy(out, raw.data(), size);
                result = 0;
            }
#if defined(HAVE_GGML_TYPE_I2_S)
            else if (t->type == GGML_TYPE_I2_S) {  // there the decoder takes the tensor's scale as well
                float scale;
                std::memcpy(&scale, raw.data() + n / 4, sizeof(scale));
                typedef void (*with_scale)(const uint8_t *, float *, int64_t, float);
                reinterpret_cast<with_scale>(reinterpret_cast<void *>(traits->to_float))(raw.data(), out, n, scale);
                result = 0;
            }
#endif
            else if (traits->to_float != nullptr) {
                traits->to_float(raw.data(), out, n);
                result = 0;
            }
        }
        if (file != nullptr) {
            fclose(file);
        }
    }
    close_file(f);
    return result;
}

}  // extern "C"
