// Fully connected layers for few images, where reading the weights (float32, bfloat16 or int8) dominates; and float32
// products with a sparse matrix, as ReLU and dropout make them.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace {

constexpr int ROWS = 4, TALL = 8;  // rows of weights at a time, to keep the memory busy; more if narrow, to reuse `x`
constexpr int IMAGES = LANES / 4;  // at a time: their sums fit the registers
constexpr int AHEAD = 1024;        // bytes to prefetch

typedef uint32_t Bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(LANES * 4)));
struct Bfloat16 { uint16_t upper; };  // half of a float32

// The number of weights in 32 bits, and the k-th of them in each lane as float32; int8 gives 2^24 times the value, so that
// a shift and a mask suffice.
template <class T> constexpr int PARTS = 4 / sizeof(T);
constexpr float INT8_SCALE = 1.0f / (1 << 24);
inline Vector part(Bits lanes, int, float) { return (Vector)lanes; }
inline Vector part(Bits lanes, int k, Bfloat16) { return (Vector)(k ? lanes & 0xffff0000u : lanes << 16); }
inline Vector part(Bits lanes, int k, int8_t) { return __builtin_convertvector((Whole)(lanes << (24 - 8 * k) & 0xff000000u), Vector); }

inline float value(float w) { return w; }
inline float value(int8_t w) { return w * float(1 << 24); }
inline float value(Bfloat16 w) {
    uint32_t bits = uint32_t(w.upper) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// sums[row][image] of w[row][inputs] and x[image][inputs] from `arrange`.
template <int R, int N, class T>
inline void dots(const float* x, const T* w, long inputs, float* sums) {
    constexpr int P = PARTS<T>;
    Vector sum[R][N] = {};
    long whole = inputs / (P * LANES) * (P * LANES);
    for (long c = 0; c < whole; c += P * LANES)
        UNROLL for (int r = 0; r < R; r++) {
            Bits lanes = *reinterpret_cast<const Bits*>(w + r * inputs + c);
            __builtin_prefetch(w + r * inputs + c + AHEAD / sizeof(T));
            UNROLL for (int k = 0; k < P; k++) {
                Vector row = part(lanes, k, T());
                UNROLL for (int n = 0; n < N; n++) sum[r][n] += row * load(x + n * inputs + c + k * LANES);
            }
        }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            float total = 0;
            for (int lane = 0; lane < LANES; lane++) total += sum[r][n][lane];
            for (long c = whole; c < inputs; c++) total += value(w[r * inputs + c]) * x[n * inputs + c];
            sums[r * N + n] = total;
        }
}

template <int R, int N = IMAGES, class T>
void dots_of(int images, const float* x, const T* w, long inputs, float* sums) {
    if (images >= N) return dots<R, N>(x, w, inputs, sums);
    if constexpr (N > 1) dots_of<R, N - 1>(images, x, w, inputs, sums);
}

// `x` permuted so that the values for the k-th weights of a register are contiguous.
template <class T>
const float* arrange(const float* x, int images, long inputs, Buffer& buffer) {
    constexpr int P = PARTS<T>;
    if (P == 1) return x;
    float* y = buffer.get(images * inputs);
    for (int n = 0; n < images; n++, x += inputs, y += inputs) {
        long whole = inputs / (P * LANES) * (P * LANES);
        for (long c = 0; c < whole; c += P * LANES)
            for (int k = 0; k < P; k++)
                for (int lane = 0; lane < LANES; lane++) y[c + k * LANES + lane] = x[c + lane * P + k];
        std::memcpy(y + whole, x + whole, (inputs - whole) * sizeof(float));
    }
    return y - images * inputs;
}

// y[image][output] = scale[output] * (sum over inputs of x[image][input] weight[output][input]) + bias[output].
template <class T>
int product(const float* x, const T* weight, const float* scale, const float* bias, int images, long inputs, long outputs, float* y,
            int threads) {
    return run((outputs + TALL - 1) / TALL, threads, [&](long block) {
        long first = block * TALL, end = std::min(outputs, first + TALL);
        for (int image = 0; image < images; image += IMAGES) {
            int count = std::min(IMAGES, images - image);
            const float* from = x + image * inputs;
            float sums[TALL * IMAGES];
            for (long k = first, step; k < end; k += step) {
                float* to = sums + (k - first) * count;
                if (sizeof(T) < 4 && count == 1 && end - k == TALL) dots<TALL, 1>(from, weight + k * inputs, inputs, to), step = TALL;
                else if (end - k >= ROWS) dots_of<ROWS>(count, from, weight + k * inputs, inputs, to), step = ROWS;
                else dots_of<1>(count, from, weight + k * inputs, inputs, to), step = 1;
            }
            for (long k = first; k < end; k++) {
                float factor = scale ? scale[k] * INT8_SCALE : 1;
                for (int n = 0; n < count; n++)
                    y[(image + n) * outputs + k] = sums[(k - first) * count + n] * factor + (bias ? bias[k] : 0);
            }
        }
    });
}

constexpr int VECTORS = 8, WIDTH = VECTORS * LANES;  // columns of a panel: a row of its sums fits the registers
constexpr int BLOCK = 128, HEIGHT = 512;             // rows of a panel, and of the sums with it, which fit the second cache

struct Entry { float value; int at; };  // a nonzero value, and the offset of its row in the panel

// panel[k][WIDTH] of `ks` rows and `ns` columns of a matrix.
void pack(const float* b, long row, long column, int ks, int ns, float* panel) {
    if (ns == WIDTH && column == 1) {
        for (int k = 0; k < ks; k++) std::memcpy(panel + k * WIDTH, b + k * row, WIDTH * sizeof(float));
    } else if (ns == WIDTH && row == 1 && ks % LANES == 0) {
        for (int n = 0; n < WIDTH; n += LANES)
            for (int k = 0; k < ks; k += LANES) {
                Vector tile[LANES];
                UNROLL for (int i = 0; i < LANES; i++) tile[i] = load(b + (n + i) * column + k);
                transpose(tile);
                UNROLL for (int i = 0; i < LANES; i++) store(panel + (k + i) * WIDTH + n, tile[i]);
            }
    } else {
        for (int k = 0; k < ks; k++)
            for (int n = 0; n < WIDTH; n++) panel[k * WIDTH + n] = n < ns ? b[k * row + n * column] : 0;
    }
}

}  // namespace

// c[rows][columns] = a b over `depth`: element (r, k) of a is at r * a_row + k * a_column, and likewise for b; `entries` has
// the size of a. Zeros of a are skipped, and with them infinities and NaN of b.
extern "C" int vggkit_sparse_product(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column, long rows,
                                     long depth, long columns, Entry* entries, int* ends, float* c, int threads) {
    long blocks = (depth + BLOCK - 1) / BLOCK, across = (columns + WIDTH - 1) / WIDTH, down = (rows + HEIGHT - 1) / HEIGHT;
    auto list = [&](long part) {
        thread_local Buffer panels;
        float* panel = panels.get(BLOCK * WIDTH);
        long first = part * WIDTH, last = std::min(rows, first + WIDTH);
        for (long block = 0; block < blocks; block++) {
            long k0 = block * BLOCK, ks = std::min<long>(BLOCK, depth - k0);
            pack(a + first * a_row + k0 * a_column, a_column, a_row, ks, last - first, panel);
            for (long m = first; m < last; m++) {
                int *end = ends + m * blocks + block, n = block ? end[-1] : 0;
                for (long k = 0; k < ks; k++) {
                    Entry& next = entries[m * depth + n] = {panel[k * WIDTH + m - first], int(k) * WIDTH};
                    n += next.value != 0;
                }
                *end = n;
            }
        }
    };
    return run((rows + WIDTH - 1) / WIDTH, threads, list) || run(across * down, threads, [&](long task) {
        thread_local Buffer panels, all_sums;
        float *panel = panels.get(BLOCK * WIDTH), *sums = all_sums.get(HEIGHT * WIDTH);
        long n = task % across * WIDTH, first = task / across * HEIGHT;
        int ns = std::min<long>(WIDTH, columns - n), ms = std::min<long>(HEIGHT, rows - first);
        for (long block = 0; block < blocks; block++) {
            const float* from = b + block * BLOCK * b_row + n * b_column;
            pack(from, b_row, b_column, std::min<long>(BLOCK, depth - block * BLOCK), ns, panel);
            bool is_result = block + 1 == blocks && ns == WIDTH;
            for (long m = 0; m < ms; m++) {
                const int* end = ends + (first + m) * blocks + block;
                const Entry* entry = entries + (first + m) * depth;
                Vector sum[VECTORS];
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    sum[v] = block ? load(sums + m * WIDTH + v * LANES) : Vector{};
                    __builtin_prefetch(from + BLOCK * b_row + m * (b_column == 1 ? b_row : b_column) + v * LANES, 0, 2);
                }
                for (int e = block ? end[-1] : 0; e < *end; e++)
                    UNROLL for (int v = 0; v < VECTORS; v++) sum[v] += entry[e].value * load(panel + entry[e].at + v * LANES);
                float* to = is_result ? c + (first + m) * columns + n : sums + m * WIDTH;
                UNROLL for (int v = 0; v < VECTORS; v++) store(to + v * LANES, sum[v]);
            }
        }
        for (long m = 0; m < ms && ns < WIDTH; m++) std::memcpy(c + (first + m) * columns + n, sums + m * WIDTH, ns * sizeof(float));
    });
}

// A fully connected layer for few images, contiguous; `bias` may be null. A weight has 4 bytes for float32, 2 for bfloat16
// or 1 for int8, which alone has a `scale`. The result does not depend on the number of threads.
extern "C" int vggkit_fully_connected(const float* x, const void* weight, int weight_bytes, const float* scale, const float* bias,
                                      int images, long inputs, long outputs, float* y, int threads) {
    auto of = [&](auto* typed) {
        thread_local Buffer buffer;
        const float* arranged;
        try {
            arranged = arrange<std::decay_t<decltype(*typed)>>(x, images, inputs, buffer);
        } catch (const std::bad_alloc&) {
            return 1;
        }
        return product(arranged, typed, scale, bias, images, inputs, outputs, y, threads);
    };
    if (weight_bytes == 1) return of(static_cast<const int8_t*>(weight));
    if (weight_bytes == 2) return of(static_cast<const Bfloat16*>(weight));
    return of(static_cast<const float*>(weight));
}
