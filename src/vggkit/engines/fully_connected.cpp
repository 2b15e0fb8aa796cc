// Fully connected layers in float32: of few images, whose time is that of reading the weights, and products with what
// ReLU and dropout have made mostly zeros.
#include <algorithm>

#include "kernels.h"

namespace {

constexpr int ROWS = 4;            // of weights at a time: as many streams keep the memory busy
constexpr int IMAGES = LANES / 4;  // whose sums fit the registers
constexpr int AHEAD = 256;         // floats that are asked for before they are needed

// sums[row][image] of w[row][inputs] and x[image][inputs].
template <int R, int N>
inline void dots(const float* x, const float* w, long inputs, float* sums) {
    Vector sum[R][N] = {};
    long whole = inputs / LANES * LANES;
    for (long c = 0; c < whole; c += LANES)
        UNROLL for (int r = 0; r < R; r++) {
            Vector row = load(w + r * inputs + c);
            __builtin_prefetch(w + r * inputs + c + AHEAD);
            UNROLL for (int n = 0; n < N; n++) sum[r][n] += row * load(x + n * inputs + c);
        }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            float total = 0;
            for (int lane = 0; lane < LANES; lane++) total += sum[r][n][lane];
            for (long c = whole; c < inputs; c++) total += w[r * inputs + c] * x[n * inputs + c];
            sums[r * N + n] = total;
        }
}

template <int R, int N = IMAGES>
void dots_of(int images, const float* x, const float* w, long inputs, float* sums) {
    if (images >= N) return dots<R, N>(x, w, inputs, sums);
    if constexpr (N > 1) dots_of<R, N - 1>(images, x, w, inputs, sums);
}

constexpr int VECTORS = 8, WIDTH = VECTORS * LANES;  // columns of a panel: a row of its sums fits the registers
constexpr int BLOCK = 128, HEIGHT = 512;             // rows of a panel, and of the sums with it, which fit the second cache

struct Entry { float value; int at; };  // what is not zero, and where its row of the panel begins

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

// c[rows][columns] = a b over `depth`: element (r, k) of a is at r * a_row + k * a_column, and so on; `entries` has room for
// all of a. Its zeros are skipped, so that infinities and NaN of b behind them are not seen.
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

// y[image][output] = sum over inputs of x[image][input] weight[output][input] + bias[output], all rows whole. What a
// thread does decides no bit of the result.
extern "C" int vggkit_fully_connected(const float* x, const float* weight, const float* bias, int images, long inputs,
                                      long outputs, float* y, int threads) {
    return run((outputs + ROWS - 1) / ROWS, threads, [&](long block) {
        long k = block * ROWS;
        int rows = std::min<long>(ROWS, outputs - k);
        for (int image = 0; image < images; image += IMAGES) {
            int count = std::min(IMAGES, images - image);
            float sums[ROWS * IMAGES];
            if (rows == ROWS) dots_of<ROWS>(count, x + image * inputs, weight + k * inputs, inputs, sums);
            for (int r = 0; r < rows; r++) {
                if (rows < ROWS) dots_of<1>(count, x + image * inputs, weight + (k + r) * inputs, inputs, sums + r * count);
                for (int n = 0; n < count; n++) y[(image + n) * outputs + k + r] = sums[r * count + n] + (bias ? bias[k + r] : 0);
            }
        }
    });
}
