// 3x3 convolutions of stride 1 and padding 1 in float32, channels last, by Winograd's F(4x4, 3x3): arXiv 1509.09308.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

constexpr int VECTORS = 2, ROWS = LANES == 16 ? 14 : 6;  // size of a block of sums in registers
constexpr int PANEL = LANES * VECTORS;
constexpr int TILE = 4, POINTS = TILE + 2, POSITIONS = POINTS * POINTS, TAPS = 9;

typedef int32_t Mask __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

inline Vector where(Mask mask, Vector v) { return (Vector)((Mask)v & mask); }
inline Mask is_open(Vector v) { return ~(v <= 0); }  // for ReLU; NaN stays NaN, as in torch

// A matrix in pieces of columns: element (r, i) of a piece is at data[r * row + i * step], and the next piece is at `jump`.
struct Matrix { const float* data; long row, step; int pieces = 1; long jump = 0; };

// c[r][PANEL] = (c[r][PANEL] +) sum over i < n of each piece of a(r, i) b[i * b_row][PANEL], in registers.
template <int R>
inline void product(Matrix a, const float* b, long b_row, float* c, long c_row, int n, bool add) {
    Vector sum[R][VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = add ? load(c + r * c_row + v * LANES) : Vector{};
    for (int piece = 0; piece < a.pieces; piece++, a.data += a.jump)
        for (int i = 0; i < n; i++, b += b_row) {
            Vector w[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) w[v] = load(b + v * LANES);
            UNROLL for (int r = 0; r < R; r++) {
                float scalar = a.data[r * a.row + i * a.step];
                UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] += scalar * w[v];
            }
        }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) store(c + r * c_row + v * LANES, sum[r][v]);
}

template <int R = ROWS>
void product_of(int rows, Matrix a, const float* b, long b_row, float* c, long c_row, int n, bool add) {
    if (rows >= R) return product<R>(a, b, b_row, c, c_row, n, add);
    if constexpr (R > 1) product_of<R - 1>(rows, a, b, b_row, c, c_row, n, add);
}

void products(int rows, Matrix a, const float* b, long b_row, float* c, long c_row, int n, bool add) {
    int blocks = (rows + ROWS - 1) / ROWS;  // of nearly equal size: a short block is latency-bound
    for (int block = 0; block < blocks; block++) {
        int r = long(rows) * block / blocks, end = long(rows) * (block + 1) / blocks;
        product_of(end - r, {a.data + r * a.row, a.row, a.step, a.pieces, a.jump}, b, b_row, c + r * c_row, c_row, n, add);
    }
}

// The one-dimensional transforms, with the points 0, 1, -1, 2, -2 and infinity.
inline void input_points(const Vector* d, long s, Vector* v, long t) {
    Vector even = d[4 * s] - 4 * d[2 * s], odd = d[3 * s] - 4 * d[s], even2 = d[4 * s] - d[2 * s], odd2 = 2 * (d[3 * s] - d[s]);
    v[0] = 4 * d[0] - 5 * d[2 * s] + d[4 * s];
    v[t] = even + odd, v[2 * t] = even - odd;
    v[3 * t] = even2 + odd2, v[4 * t] = even2 - odd2;
    v[5 * t] = 4 * d[s] - 5 * d[3 * s] + d[5 * s];
}
inline void output_points(const Vector* m, long s, Vector* y, long t) {
    Vector sum = m[s] + m[2 * s], difference = m[s] - m[2 * s], sum2 = m[3 * s] + m[4 * s], difference2 = m[3 * s] - m[4 * s];
    y[0] = m[0] + sum + sum2;
    y[t] = difference + 2 * difference2;
    y[2 * t] = sum + 4 * sum2;
    y[3 * t] = difference + 8 * difference2 + m[5 * s];
}
inline void gradient_points(const Vector* y, long s, Vector* m, long t) {  // transpose of output_points
    Vector even = y[0] + y[2 * s], odd = y[s] + y[3 * s], even2 = y[0] + 4 * y[2 * s], odd2 = 2 * y[s] + 8 * y[3 * s];
    m[0] = y[0], m[5 * t] = y[3 * s];
    m[t] = even + odd, m[2 * t] = even - odd;
    m[3 * t] = even2 + odd2, m[4 * t] = even2 - odd2;
}
inline void weight_points(const Vector* g, long s, Vector* u, long t) {
    Vector outer = (g[0] + g[2 * s]) * (-1.0f / 6), inner = g[s] * (1.0f / 6);
    Vector outer2 = g[0] * (1.0f / 24) + g[2 * s] * (1.0f / 6), inner2 = g[s] * (1.0f / 12);
    u[0] = g[0] * 0.25f, u[5 * t] = g[2 * s];
    u[t] = outer - inner, u[2 * t] = outer + inner;
    u[3 * t] = outer2 + inner2, u[4 * t] = outer2 - inner2;
}
inline void weight_gradient_points(const Vector* u, long s, Vector* g, long t) {  // transpose of weight_points
    Vector sum = u[s] + u[2 * s], sum2 = u[3 * s] + u[4 * s];
    g[0] = u[0] * 0.25f - sum * (1.0f / 6) + sum2 * (1.0f / 24);
    g[t] = (u[2 * s] - u[s]) * (1.0f / 6) + (u[3 * s] - u[4 * s]) * (1.0f / 12);
    g[2 * t] = (sum2 - sum) * (1.0f / 6) + u[5 * s];
}

enum Gate { OPEN, RELU, POOL };

// The input of a convolution: a map, or the gradient of one after a ReLU (where its output was positive) or a pool.
struct Map {
    const float* values;
    const void* gate;
    Gate kind;
    int height, width, channels;
};
struct Pixel { const float* value; const void* gate; int which; };
const float* zeros() {
    alignas(64) static float all[65536];
    return all;
}

inline Pixel pixel_at(const Map& map, long image, int i, int j) {
    int h = map.height, w = map.width, which = (i & 1) * 2 + (j & 1);
    if (map.kind == POOL) i >>= 1, j >>= 1, h >>= 1, w >>= 1;
    if (i < 0 || j < 0 || i >= h || j >= w) return {zeros(), zeros(), 0};
    long at = ((image * h + i) * w + j) * map.channels;
    const void* gate = map.kind == POOL ? static_cast<const void*>(static_cast<const uint8_t*>(map.gate) + at)
                                        : static_cast<const float*>(map.gate) + (map.kind == RELU ? at : 0);
    return {map.values + at, gate, which};
}

template <Gate KIND>
inline Vector value_of(const Pixel& p, int c) {
    Vector value = load(p.value + c);
    if constexpr (KIND == RELU) return where(is_open(load(static_cast<const float*>(p.gate) + c)), value);
    if constexpr (KIND == POOL) {
        Bytes codes = *reinterpret_cast<const Bytes*>(static_cast<const uint8_t*>(p.gate) + c);
        return where(__builtin_convertvector(codes, Mask) == p.which, value);
    }
    return value;
}

// Prefetches for the next tile: the rows of a tile are too far apart for the hardware prefetcher.
template <Gate KIND>
inline void prefetch_next(const Pixel& p, int channels, int c) {
    long next = long(KIND == POOL ? TILE / 2 : TILE) * channels + c;
    __builtin_prefetch(p.value + next);
    if constexpr (KIND == RELU) __builtin_prefetch(static_cast<const float*>(p.gate) + next);
    if constexpr (KIND == POOL) __builtin_prefetch(static_cast<const uint8_t*>(p.gate) + next);
}

inline Vector value_at(Gate kind, const Pixel& p, int c) {
    return kind == OPEN ? value_of<OPEN>(p, c) : kind == RELU ? value_of<RELU>(p, c) : value_of<POOL>(p, c);
}

struct Tiles {
    int rows, columns;
    long count;
    Tiles(int images, int height, int width)
        : rows((height + TILE - 1) / TILE), columns((width + TILE - 1) / TILE), count(long(images) * rows * columns) {}
    void at(long tile, long& image, int& i, int& j) const {
        image = tile / (rows * columns);
        i = tile / columns % rows * TILE;
        j = tile % columns * TILE;
    }
};

// v[position][tile][c] of `channels` from c0, with tiles `row` and positions `plane` floats apart; from a map's 6x6 pixels,
// or from a gradient's 4x4 by the transpose of transform_output.
template <Gate KIND, bool IS_GRADIENT>
void transform_tiles(const Map& map, const Tiles& tiles, long begin, long end, int c0, int channels, float* v, long row, long plane) {
    constexpr int SIDE = IS_GRADIENT ? TILE : POINTS, BORDER = IS_GRADIENT ? 0 : 1;
    constexpr auto points = IS_GRADIENT ? gradient_points : input_points;
    for (long tile = begin; tile < end; tile++, v += row) {
        long image;
        int i, j;
        tiles.at(tile, image, i, j);
        Pixel pixels[SIDE * SIDE];
        for (int p = 0; p < SIDE * SIDE; p++) pixels[p] = pixel_at(map, image, i + p / SIDE - BORDER, j + p % SIDE - BORDER);
        for (int c = 0; c < channels; c += LANES) {
            Vector d[SIDE * SIDE], half[POINTS * SIDE], all[POSITIONS];
            UNROLL for (int r = 0; r < SIDE; r++)
                UNROLL for (int s = SIDE - TILE; s < SIDE; s++) prefetch_next<KIND>(pixels[r * SIDE + s], map.channels, c0 + c);
            UNROLL for (int s = 0; s < SIDE; s++) {
                UNROLL for (int r = 0; r < SIDE; r++) d[r * SIDE + s] = value_of<KIND>(pixels[r * SIDE + s], c0 + c);
                points(d + s, SIDE, half + s, SIDE);
            }
            UNROLL for (int r = 0; r < POINTS; r++) {
                points(half + r * SIDE, 1, all + r * POINTS, 1);
                UNROLL for (int s = 0; s < POINTS; s++) store(v + (r * POINTS + s) * plane + c, all[r * POINTS + s]);
            }
        }
    }
}
template <bool IS_GRADIENT>
void transform(const Map& map, const Tiles& tiles, long begin, long end, int c0, int channels, float* v, long row, long plane) {
    auto chosen = map.kind == OPEN ? transform_tiles<OPEN, IS_GRADIENT> : map.kind == RELU ? transform_tiles<RELU, IS_GRADIENT> : transform_tiles<POOL, IS_GRADIENT>;
    chosen(map, tiles, begin, end, c0, channels, v, row, plane);
}

// The weight of (input c, output k, tap) is at c * in + k * out + tap * step; `in` or `out` is 1.
struct Weights {
    const float* values;
    long in, out, step;
    int outputs;
    bool flipped;  // taps in the opposite order
};

// u[position][c][PANEL] of `channels` inputs from c0 and the outputs from k0, zero after the last.
void transform_weights(const Weights& w, int c0, int channels, int k0, float* u, long plane) {
    alignas(64) Vector taps[TAPS][LANES];
    for (int v = 0; v < PANEL; v += LANES)
        for (int c = 0; c < channels; c++) {
            if (c % LANES == 0)
                for (int tap = 0; tap < TAPS; tap++) {
                    const float* from = w.values + (c0 + c) * w.in + (k0 + v) * w.out + (w.flipped ? TAPS - 1 - tap : tap) * w.step;
                    for (int row = 0; row < LANES; row++, from += w.out == 1 ? w.in : w.out)
                        taps[tap][row] = k0 + v < w.outputs ? load(from) : Vector{};
                    if (w.out != 1) transpose(taps[tap]);
                }
            Vector g[TAPS], half[POINTS * 3], full[POSITIONS];
            const float* next = w.values + (c0 + c / LANES * LANES + LANES) * w.in + (k0 + v) * w.out + c % LANES * (w.out == 1 ? w.in : w.out);
            UNROLL for (int tap = 0; tap < TAPS; tap++) {
                g[tap] = taps[tap][c % LANES];
                __builtin_prefetch(next + tap * w.step);
            }
            UNROLL for (int s = 0; s < 3; s++) weight_points(g + s, 3, half + s, 3);
            UNROLL for (int r = 0; r < POINTS; r++) {
                weight_points(half + r * 3, 1, full + r * POINTS, 1);
                UNROLL for (int s = 0; s < POINTS; s++) store(u + (r * POINTS + s) * plane + c * PANEL + v, full[r * POINTS + s]);
            }
        }
}

// The epilogue of a convolution: scale and bias of each output, ReLU, 2x2 max pool.
struct Output {
    float* values;
    uint8_t* codes;  // position of each pooled value in its window: 0 to 3 by rows, or 4 if ReLU made it zero
    const float *scale, *bias;
    bool relu, pool;
    int height, width, channels;
};

// Pool the 2x2 window at (i, j) into `y`; its row r is at window[r * row].
inline void put(const Output& y, long image, int i, int j, int k, const Vector* window, int row) {
    if (i >= y.height || j >= y.width) return;
    Vector scale = y.scale ? load(y.scale + k) : Vector{} + 1, bias = y.bias ? load(y.bias + k) : Vector{};
    Vector values[4];
    UNROLL for (int which = 0; which < 4; which++) {
        Vector value = window[which / 2 * row + which % 2] * scale + bias;
        values[which] = y.relu && !y.pool ? where(is_open(value), value) : value;
    }
    if (!y.pool) {
        float* at = y.values + ((image * y.height + i) * y.width + j) * y.channels + k;
        long below = long(y.width) * y.channels;
        bool has_right = j + 1 < y.width, has_below = i + 1 < y.height;
        store(at, values[0]);
        if (has_right) store(at + y.channels, values[1]);
        if (has_below) store(at + below, values[2]);
        if (has_right && has_below) store(at + below + y.channels, values[3]);
        return;
    }
    if (i + 1 >= y.height || j + 1 >= y.width) return;
    Vector best = values[0];
    Mask code = {};
    UNROLL for (int which = 1; which < 4; which++) {
        Mask is_more = ~(values[which] <= best) & (best == best);
        best = (Vector)(((Mask)values[which] & is_more) | ((Mask)best & ~is_more));
        code = (code & ~is_more) | ((Mask{} + which) & is_more);
    }
    if (y.relu) {
        Mask open = is_open(best);
        code = (code & open) | ((Mask{} + 4) & ~open);
        best = where(open, best);
    }
    long at = ((image * (y.height / 2) + i / 2) * (y.width / 2) + j / 2) * y.channels + k;
    store(y.values + at, best);
    if (y.codes) *reinterpret_cast<Bytes*>(y.codes + at) = __builtin_convertvector(code, Bytes);
}

// y from m[position][tile][PANEL] of the outputs from k0 on.
void transform_output(const Output& y, const Tiles& tiles, long begin, long end, int k0, const float* m, long plane) {
    for (long tile = begin; tile < end; tile++, m += PANEL) {
        long image;
        int i, j;
        tiles.at(tile, image, i, j);
        for (int k = 0; k < PANEL && k0 + k < y.channels; k += LANES) {
            Vector all[POSITIONS], half[TILE * POINTS], out[TILE * TILE];
            UNROLL for (int s = 0; s < POINTS; s++) {
                UNROLL for (int r = 0; r < POINTS; r++) all[r * POINTS + s] = load(m + (r * POINTS + s) * plane + k);
                output_points(all + s, POINTS, half + s, POINTS);
            }
            UNROLL for (int r = 0; r < TILE; r++) output_points(half + r * POINTS, 1, out + r * TILE, 1);
            UNROLL for (int r = 0; r < TILE; r += 2)
                UNROLL for (int s = 0; s < TILE; s += 2) put(y, image, i + r, j + s, k0 + k, out + r * TILE + s, TILE);
        }
    }
}

// Inputs whose transformed weights are in the cache at a time; with few tiles, weights are replaced faster.
inline int block_of(long tiles) { return tiles > 32 ? 128 : 64; }
constexpr int ASIDE = 16;   // floats between planes, to avoid cache conflicts

// The tiles begin..end of the outputs k_begin..k_end, in the buffers of this thread.
void convolve(const Map& map, const Tiles& tiles, long begin, long end, const Weights& weights, int k_begin, int k_end, const Output& y) {
    thread_local Buffer inputs, panels, sums;
    long count = end - begin, row = map.channels + ASIDE, plane = count * row + ASIDE, sums_plane = count * PANEL + ASIDE;
    float* v = inputs.get(POSITIONS * plane);
    float* m = sums.get(POSITIONS * sums_plane);
    int block = block_of(count);
    transform<false>(map, tiles, begin, end, 0, map.channels, v, row, plane);
    for (int k0 = k_begin; k0 < k_end; k0 += PANEL) {
        for (int c0 = 0; c0 < map.channels; c0 += block) {
            int channels = std::min(block, map.channels - c0);
            long u_plane = channels * PANEL + ASIDE;
            float* u = panels.get(POSITIONS * u_plane);
            transform_weights(weights, c0, channels, k0, u, u_plane);
            for (int p = 0; p < POSITIONS; p++)
                products(count, {v + p * plane + c0, row, 1}, u + p * u_plane, PANEL, m + p * sums_plane, PANEL, channels, c0 > 0);
        }
        transform_output(y, tiles, begin, end, k0, m, sums_plane);
    }
}

// Sums `count` rows first, since adding one by one loses digits.
inline void add_sum(const float* from, int count, long row, float* to) {
    Vector sum = {};
    for (int r = 0; r < count; r++) sum += load(from + r * row);
    store(to, load(to) + sum);
}

// dw[k][tap][c] of outputs ks from k0 and inputs cs from c0, and db[k], from the tiles begin..end.
void weight_gradient(const Map& map, const Map& gradient, const Tiles& tiles, long begin, long end, int c0, int cs, int k0, int ks, float* dw, float* db) {
    constexpr int CHUNK = 32;
    thread_local Buffer inputs, gradients, sums;
    int row = (cs + PANEL - 1) / PANEL * PANEL;
    long v_plane = CHUNK * row + ASIDE, g_plane = CHUNK * ks + ASIDE, du_plane = ks * row + ASIDE;
    float* v = inputs.get(POSITIONS * v_plane);
    float* g = gradients.get(POSITIONS * g_plane);
    float* du = sums.get(POSITIONS * du_plane);
    std::memset(du, 0, sizeof(float) * POSITIONS * du_plane);
    for (long first = begin; first < end; first += CHUNK) {
        long last = std::min<long>(first + CHUNK, end);
        int count = last - first;
        transform<false>(map, tiles, first, last, c0, cs, v, row, v_plane);
        transform<true>(gradient, tiles, first, last, k0, ks, g, ks, g_plane);
        for (int p = 0; p < POSITIONS; p++)
            for (int c = 0; c < cs; c += PANEL)
                products(ks, {g + p * g_plane, 1, ks}, v + p * v_plane + c, row, du + p * du_plane + c, row, count, true);
        if (db)  // at the points (1, 1) the transformed gradient is the sum over its tile
            for (int k = 0; k < ks; k += LANES) add_sum(g + (POINTS + 1) * g_plane + k, count, ks, db + k0 + k);
    }
    for (int k = 0; k < ks; k++)
        for (int c = 0; c < cs; c += LANES) {
            Vector all[POSITIONS], half[3 * POINTS], taps[TAPS];
            for (int p = 0; p < POSITIONS; p++) all[p] = load(du + p * du_plane + k * row + c);
            for (int s = 0; s < POINTS; s++) weight_gradient_points(all + s, POINTS, half + s, POINTS);
            for (int r = 0; r < 3; r++) weight_gradient_points(half + r * POINTS, 1, taps + r * 3, 1);
            for (int tap = 0; tap < TAPS; tap++) store(dw + ((k0 + k) * long(TAPS) + tap) * map.channels + c0 + c, taps[tap]);
        }
}

// Few inputs (1 or 3 for images): a pixel's patch is three pieces of three pixels in three rows with a border of zeros.
// Rows i - 1 to i + count of an image with a border, each (width + 2) * channels floats.
void with_border(const Map& map, long image, int i, int count, float* rows) {
    long row = long(map.width + 2) * map.channels, inside = long(map.width) * map.channels;
    for (int r = i - 1; r <= i + count; r++, rows += row) {
        std::memset(rows, 0, row * sizeof(float));
        if (r >= 0 && r < map.height) std::memcpy(rows + map.channels, map.values + (image * map.height + r) * inside, inside * sizeof(float));
    }
}

// Two rows of outputs, from row i on; w[panel][row of taps][3 channels][PANEL].
void convolve_rows(const Map& map, long image, int i, const float* w, const Output& y) {
    thread_local Buffer borders, sums;
    int piece = 3 * map.channels;
    long row = long(map.width + 2) * map.channels, odd = map.width & 1;
    float* rows = borders.get(4 * row);
    float* m = sums.get(2 * (map.width + odd) * PANEL);
    with_border(map, image, i, 2, rows);
    for (int k0 = 0; k0 < y.channels; k0 += PANEL, w += 3 * piece * PANEL) {
        for (int r = 0; r < 2; r++)
            products(map.width, {rows + r * row, map.channels, 1, 3, row}, w, PANEL, m + r * (map.width + odd) * PANEL, PANEL, piece, false);
        for (int j = 0; j < map.width; j += 2)
            for (int k = 0; k < PANEL && k0 + k < y.channels; k += LANES) {
                Vector window[4];
                for (int which = 0; which < 4; which++)
                    window[which] = load(m + (which / 2 * (map.width + odd) + j + which % 2) * PANEL + k);
                put(y, image, i, j, k0 + k, window, 2);
            }
    }
}

// All rows of all images; weight[output][tap][channel].
int convolve_image(const Map& map, int images, const float* weight, const Output& y, int threads) {
    int taps = TAPS * map.channels, pairs = (map.height + 1) / 2;
    Buffer packed;
    auto pack = [&](long) {
        float* w = packed.get(long(taps) * (y.channels + PANEL));
        for (int k = 0; k < y.channels; k++)
            for (int tap = 0; tap < taps; tap++) w[(long(k / PANEL) * taps + tap) * PANEL + k % PANEL] = weight[long(k) * taps + tap];
    };
    return run(1, 1, pack) || run(long(images) * pairs, threads, [&](long pair) {
        convolve_rows(map, pair / pairs, pair % pairs * 2, packed.data, y);
    });
}

// dw[k][tap][c] and db[k] from the rows begin..end of all images together.
void weight_gradient_rows(const Map& map, const Map& gradient, long begin, long end, float* dw, float* db) {
    thread_local Buffer borders, gradients, sums;
    int piece = 3 * map.channels, outputs = gradient.channels, width = (outputs + PANEL - 1) / PANEL * PANEL;
    long row = long(map.width + 2) * map.channels;
    float* rows = borders.get(3 * row);
    float* g = gradients.get(long(map.width) * width);
    float* dm = sums.get(3 * piece * width);
    std::memset(dm, 0, sizeof(float) * 3 * piece * width);
    for (long at = begin; at < end; at++) {
        long image = at / map.height;
        int i = at % map.height;
        with_border(map, image, i, 1, rows);
        for (int j = 0; j < map.width; j++) {
            Pixel pixel = pixel_at(gradient, image, i, j);
            for (int k = 0; k < outputs; k += LANES) store(g + long(j) * width + k, value_at(gradient.kind, pixel, k));
        }
        for (int k = 0; k < outputs; k += LANES) add_sum(g + k, map.width, width, db + k);
        for (int taps = 0; taps < 3; taps++)
            for (int k = 0; k < outputs; k += PANEL)
                products(piece, {rows + taps * row, 1, map.channels}, g + k, width, dm + taps * piece * width + k, width, map.width, true);
    }
    for (int k = 0; k < outputs; k++)
        for (int tap = 0; tap < TAPS * map.channels; tap++) dw[long(k) * TAPS * map.channels + tap] = dm[long(tap) * width + k];
}

}  // namespace

// All maps are contiguous (images, height, width, channels); `gate` is the output of a ReLU, the codes of a pool, or null.
// Results do not depend on the number of chunks or of channels in a group. The functions return 1 if an allocation failed.
extern "C" {

int vggkit_convolve(const float* x, const void* gate, int kind, int images, int height, int width, int inputs, int outputs,
                     const float* weight, long in, long out, long step, int flipped, const float* scale, const float* bias,
                     int relu, int pool, float* y, uint8_t* codes, int chunks, int group, int threads) {
    Map map{x, gate, Gate(kind), height, width, inputs};
    Weights weights{weight, in, out, step, outputs, bool(flipped)};
    Output output{y, codes, scale, bias, bool(relu), bool(pool), height, width, outputs};
    if (inputs < LANES) return convolve_image(map, images, weight, output, threads);
    Tiles tiles(images, height, width);
    long groups = (outputs + group - 1) / group;
    return run(chunks * groups, threads, [&](long task) {
        long part = task / groups, begin = tiles.count * part / chunks, end = tiles.count * (part + 1) / chunks;
        int k = task % groups * group;
        convolve(map, tiles, begin, end, weights, k, std::min(outputs, k + group), output);
    });
}

// dw[split][output][tap][input] and db[split][output], initially zero; the caller sums the splits.
int vggkit_weight_gradient(const float* x, const float* dy, const void* gate, int kind, int images, int height, int width,
                            int inputs, int outputs, float* dw, float* db, int splits, int group, int threads) {
    Map map{x, nullptr, OPEN, height, width, inputs}, gradient{dy, gate, Gate(kind), height, width, outputs};
    if (inputs < LANES) {
        long rows = long(images) * height;
        return run(splits, threads, [&](long split) {
            weight_gradient_rows(map, gradient, rows * split / splits, rows * (split + 1) / splits,
                                 dw + split * outputs * TAPS * inputs, db + split * outputs);
        });
    }
    Tiles tiles(images, height, width);
    long across = (inputs + group - 1) / group, down = (outputs + group - 1) / group;
    return run(splits * across * down, threads, [&](long task) {
        long split = task / (across * down), begin = tiles.count * split / splits, end = tiles.count * (split + 1) / splits;
        int c = task % across * group, k = task / across % down * group;
        weight_gradient(map, gradient, tiles, begin, end, c, std::min(group, inputs - c), k, std::min(group, outputs - k),
                        dw + split * outputs * TAPS * inputs, c == 0 ? db + split * outputs : nullptr);
    });
}
}
