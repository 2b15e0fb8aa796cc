// A fully connected layer of few images in float32, whose time is that of reading its weights.
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

}  // namespace

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
