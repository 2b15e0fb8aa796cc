// Times the phases of winograd.cpp, layer by layer, on one thread: see winograd_phases.py.
#include "winograd.cpp"

#include <cstdio>
#include <ctime>
#include <vector>

static double now() {  // of this thread: what others do on the machine does not count
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

int main() {
    const int layers[][3] = {{64, 64, 224}, {64, 128, 112}, {128, 128, 112}, {128, 256, 56}, {256, 256, 56}, {256, 512, 28}, {512, 512, 28}, {512, 512, 14}};
    for (auto& layer : layers) {
        int inputs = layer[0], outputs = layer[1], side = layer[2];
        std::vector<float> x(long(side) * side * inputs, 1.0f), w(9L * inputs * outputs, 1.0f), y(long(side) * side * outputs);
        Map map{x.data(), nullptr, OPEN, side, side, inputs};
        Weights weights{w.data(), 1, 9L * inputs, inputs, outputs, false};
        Output output{y.data(), nullptr, nullptr, nullptr, true, false, side, side, outputs};
        Tiles tiles(1, side, side);
        long chunk = std::max(32, std::min(126, (1 << 15) / inputs)), chunks = (tiles.count + chunk - 1) / chunk;
        Buffer v_buffer, u_buffer, m_buffer;
        double seconds[4] = {};
        long flops = 0;
        for (int repeat = 0; repeat < 7; repeat++) {
            if (repeat == 2) std::fill(seconds, seconds + 4, 0.0), flops = 0;  // the first two warm up
            for (long part = 0; part < chunks; part++) {
                long begin = tiles.count * part / chunks, end = tiles.count * (part + 1) / chunks, count = end - begin;
                long row = inputs + ASIDE, plane = count * row + ASIDE, m_plane = count * PANEL + ASIDE;
                float *v = v_buffer.get(POSITIONS * plane), *m = m_buffer.get(POSITIONS * m_plane);
                double start = now();
                transform<false>(map, tiles, begin, end, 0, inputs, v, row, plane);
                seconds[0] += now() - start;
                for (int k0 = 0; k0 < outputs; k0 += PANEL) {
                    for (int c0 = 0; c0 < inputs; c0 += block_of(count)) {
                        int channels = std::min(block_of(count), inputs - c0);
                        long u_plane = channels * PANEL + ASIDE;
                        float* u = u_buffer.get(POSITIONS * u_plane);
                        start = now();
                        transform_weights(weights, c0, channels, k0, u, u_plane);
                        double middle = now();
                        for (int p = 0; p < POSITIONS; p++)
                            products(count, {v + p * plane + c0, row, 1}, u + p * u_plane, PANEL, m + p * m_plane, PANEL, channels, c0 > 0);
                        seconds[1] += middle - start;
                        seconds[2] += now() - middle;
                        flops += 2L * POSITIONS * count * channels * PANEL;
                    }
                    start = now();
                    transform_output(output, tiles, begin, end, k0, m, m_plane);
                    seconds[3] += now() - start;
                }
            }
        }
        std::printf("{\"inputs\": %d, \"outputs\": %d, \"pixels\": %d, \"input_ms\": %.3g, \"weights_ms\": %.3g, \"products_ms\": %.3g, "
                    "\"output_ms\": %.3g, \"product_gflops_per_second\": %.0f, \"input_ns_per_vector\": %.3g}\n",
                    inputs, outputs, side, 200 * seconds[0], 200 * seconds[1], 200 * seconds[2], 200 * seconds[3],
                    flops / seconds[2] / 1e9, 1e9 * seconds[0] / (5 * tiles.count * inputs / LANES));
    }
}
