// Shared by the kernels: a register of float32, a buffer for each thread, parallel tasks.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

#define UNROLL _Pragma("GCC unroll 36")

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// rows[i][j] becomes rows[j][i].
template <int STRIDE, int... J>
inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, J...>) {
    Vector first = __builtin_shufflevector(a, b, (J & STRIDE ? LANES + J - STRIDE : J)...);
    b = __builtin_shufflevector(a, b, (J & STRIDE ? LANES + J : J + STRIDE)...);
    a = first;
}
template <int STRIDE = LANES / 2>
inline void transpose(Vector* rows) {
    UNROLL for (int i = 0; i < LANES; i++)
        if (!(i & STRIDE)) exchange<STRIDE>(rows[i], rows[i + STRIDE], std::make_integer_sequence<int, LANES>());
    if constexpr (STRIDE > 1) transpose<STRIDE / 2>(rows);
}

struct Buffer {
    float* data = nullptr;
    size_t size = 0;
    float* get(size_t count) {
        if (count > size) {
            std::free(data);
            size = (count + 1023) / 1024 * 1024;
            data = static_cast<float*>(std::aligned_alloc(4096, size * 4));
            if (!data) { size = 0; throw std::bad_alloc(); }
            std::memset(data, 0, size * 4);
        }
        return data;
    }
    ~Buffer() { std::free(data); }
};

// Runs tasks in parallel, in any order; returns 1 if an allocation failed.
template <class Task>
int run(long tasks, int threads, Task task) {
    int has_failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : has_failed)
    for (long i = 0; i < tasks; i++) {
        try {
            task(i);
        } catch (const std::bad_alloc&) {
            has_failed = 1;
        }
    }
    return has_failed;
}
