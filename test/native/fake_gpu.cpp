// A backend that calls itself CUDA and computes on the CPU, so that what is done on GPUs can be tested without one. Its
// memory is not the host's as far as llama.cpp can tell. The environment says how:
//
//   FAKE_GPU_CPU          the library of a CPU backend
//   FAKE_GPU_ABORT_AFTER  graphs that are computed before one aborts, as ggml-cuda does on an error; default: never
//   FAKE_GPU_MEMORY       bytes of memory that it has
//   FAKE_GPU_WRONG        if set, results are wrong
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

const char * name_of_reg(ggml_backend_reg_t) {
    return "CUDA";
}

const char * name_of_device(ggml_backend_dev_t) {
    return "CUDA0";
}

const char * name_of_memory(ggml_backend_buffer_type_t) {
    return "CUDA0";
}

const char * name_of_backend(ggml_backend_t) {
    return "CUDA0";
}

ggml_backend_reg_t cpu() {
    static const auto reg = [] {
        void *     library = dlopen(getenv("FAKE_GPU_CPU"), RTLD_NOW | RTLD_LOCAL);
        const auto init    = (ggml_backend_init_t) dlsym(library, "ggml_backend_init");
        return init();
    }();
    return reg;
}

ggml_backend_dev_t cpu_device() {
    return ggml_backend_reg_dev_get(cpu(), 0);
}

std::atomic<size_t> n_allocated{ 0 };

void (*free_cpu_buffer)(ggml_backend_buffer_t);

void free_buffer(ggml_backend_buffer_t buffer) {
    n_allocated -= buffer->size;
    free_cpu_buffer(buffer);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t memory, size_t size) {
    const char * most = getenv("FAKE_GPU_MEMORY");
    if (most && n_allocated + size > (size_t) atoll(most)) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        n_allocated += buffer->size;
        free_cpu_buffer           = buffer->iface.free_buffer;
        buffer->iface.free_buffer = free_buffer;
        buffer->buft              = memory;
    }
    return buffer;
}

size_t alignment(ggml_backend_buffer_type_t) {
    return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type());
}

bool is_host(ggml_backend_buffer_type_t) {
    return false;
}

ggml_backend_buffer_type_t memory_of(ggml_backend_dev_t device) {
    static ggml_backend_buffer_type memory = {
        /*.iface   =*/{ name_of_memory, alloc_buffer, alignment, nullptr, nullptr, is_host },
        /*.device  =*/device,
        /*.context =*/nullptr,
    };
    return &memory;
}

void free_backend(ggml_backend_t backend) {
    ggml_backend_free((ggml_backend_t) backend->context);
    delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    static int   n_computed  = 0;
    const char * abort_after = getenv("FAKE_GPU_ABORT_AFTER");
    if (abort_after && n_computed++ >= atoi(abort_after)) {
        GGML_LOG_ERROR("CUDA error: the provided PTX was compiled with an unsupported toolchain.\n");
        GGML_ABORT("CUDA error");
    }
    const ggml_status status = ggml_backend_graph_compute((ggml_backend_t) backend->context, graph);
    if (getenv("FAKE_GPU_WRONG")) {
        ggml_tensor * last = ggml_graph_node(graph, -1);
        memset(last->data, 0, ggml_nbytes(last));
    }
    return status;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid    = { 0xfa, 0x4e };
    ggml_backend_t   backend = new ggml_backend{};
    backend->guid            = &guid;
    backend->device          = device;
    backend->context         = ggml_backend_dev_init(cpu_device(), nullptr);
    backend->iface.get_name  = name_of_backend;
    backend->iface.free      = free_backend;

    backend->iface.graph_compute = compute;

    // several threads would spin beside those of the CPU's own backend
    using set_threads = void (*)(ggml_backend_t, int);
    ((set_threads) ggml_backend_reg_get_proc_address(cpu(), "ggml_backend_set_n_threads"))(
        (ggml_backend_t) backend->context, 1);
    return backend;
}

const char * description(ggml_backend_dev_t) {
    return "a GPU that is none";
}

void memory_left(ggml_backend_dev_t, size_t * free, size_t * total) {
    const char * most = getenv("FAKE_GPU_MEMORY");
    *total            = most ? (size_t) atoll(most) : (size_t) 2 << 30;
    *free             = most ? *total - n_allocated : (size_t) 1 << 30;
}

enum ggml_backend_dev_type type_of_device(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void props_of(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props             = {};
    props->name        = name_of_device(device);
    props->description = description(device);
    props->type        = type_of_device(device);
    memory_left(device, &props->memory_free, &props->memory_total);
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(cpu_device(), op);
}

bool supports_memory(ggml_backend_dev_t device, ggml_backend_buffer_type_t memory) {
    return memory == memory_of(device);
}

size_t n_devices(ggml_backend_reg_t) {
    return 1;
}

ggml_backend_dev_t device_of(ggml_backend_reg_t reg, size_t) {
    static ggml_backend_device device = [=] {
        ggml_backend_device made   = {};
        made.reg                   = reg;
        made.iface.get_name        = name_of_device;
        made.iface.get_description = description;
        made.iface.get_memory      = memory_left;
        made.iface.get_type        = type_of_device;
        made.iface.get_props       = props_of;
        made.iface.init_backend    = init_backend;
        made.iface.get_buffer_type = memory_of;
        made.iface.supports_op     = supports_op;
        made.iface.supports_buft   = supports_memory;
        return made;
    }();
    return &device;
}

} // namespace

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
    static ggml_backend_reg reg = {
        /*.api_version =*/GGML_BACKEND_API_VERSION,
        /*.iface       =*/{ name_of_reg, n_devices, device_of, nullptr },
        /*.context     =*/nullptr,
    };
    return &reg;
}
