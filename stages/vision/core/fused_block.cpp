// Max-pooling (2x2, optional), batch normalization with the statistics of the batch, and SiLU, forward and backward.
// fused_block.py calls it.
//
// Memory limits the speed of these operators, so one that reads and writes less is faster than three. The forward pass
// reads the input once, to pool it and to sum for the statistics. Everything after that works on the pooled features, a
// quarter of the size. The backward pass computes the sigmoid again, which takes less time than to read it.
//
// Features are bfloat16 in the memory format channels_last, [N, H, W, C]. C is a multiple of 32. Everything is computed
// in float32; sums over chunks are added in float64.
//
// The bits of the result depend on the inputs only, not on the number of threads, the compiler or the CPU: sums have a
// fixed order, and the flags in shared_library.py let the compiler neither reorder operations nor fuse them. Fused
// multiply-adds are explicit.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Bytes = uint8_t __attribute__((vector_size(16)));

constexpr int64_t kGroup = 32;  // channels that are computed together: 64 bytes, a cache line
constexpr int64_t kChunkPixels = 512;  // pixels that are summed in float32

// A group of channels in float32. A word of memory holds two bfloat16 numbers. Its lower half is a channel with an even
// index, its upper half one with an odd index. To separate them takes less time than to keep them in order.
struct Group {
    Floats even, odd;
};

Group load(const uint16_t* features) {
    Words words;
    std::memcpy(&words, features, sizeof words);
    return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
}

// The bfloat16 number is the upper half of each word of the result.
Words round_to_bfloat16(Floats x) {
    Words bits = (Words)x;
    Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    return x != x ? bits | 0x400000u : rounded;  // rounding could turn NaN into another number
}

Words pack(Group x) { return (round_to_bfloat16(x.even) >> 16) | (round_to_bfloat16(x.odd) & 0xffff0000u); }

void store(uint16_t* features, Group x) {
    const Words words = pack(x);
    std::memcpy(features, &words, sizeof words);
}

// Stores without reading the cache line first, which saves a third of the traffic of a large tensor.
void stream(uint16_t* features, Words words) {
#ifdef __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i*>(features), reinterpret_cast<__m512i>(words));
#else
    std::memcpy(features, &words, sizeof words);
#endif
}

// Makes what this thread streamed visible to other threads.
void finish_streaming() {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

Group load(const float* values) {
    Group group;
    std::memcpy(&group, values, sizeof group);
    return group;
}

void store(float* values, Group group) { std::memcpy(values, &group, sizeof group); }

// Where a channel is among the float32 numbers of a Group.
int64_t position(int64_t channel) { return channel / 32 * 32 + channel % 2 * 16 + channel % 32 / 2; }

Floats fma(Floats a, Floats b, Floats c) {
    Floats result;
    for (int i = 0; i < 16; i++) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
}

// 1 / (1 + exp(-x)), with a relative error below 1e-5.
Floats sigmoid(Floats x) {
    Floats exponent = x * -1.44269504f;  // exp(-x) = 2**exponent
    exponent = exponent < 126.0f ? exponent : (Floats{} + 126.0f);
    exponent = exponent > -126.0f ? exponent : (Floats{} - 126.0f);
    const float magic = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer, in the lowest bits
    Floats shifted = exponent + magic;
    Floats fraction = exponent - (shifted - magic);  // in [-0.5, 0.5]
    Floats power = fma(Floats{} + 0.0096003955f, fraction, Floats{} + 0.055916894f);  // 2**fraction, by least squares
    power = fma(power, fraction, Floats{} + 0.24023719f);
    power = fma(power, fraction, Floats{} + 0.693122f);
    power = fma(power, fraction, Floats{} + 1.0f);
    power = (Floats)((Words)power + ((Words)shifted << 23));
    return 1.0f / (1.0f + power);
}

struct Pooled {
    Group value;
    Words place;  // of the maximum of the even channel, 0 to 3, plus four times that of the odd one
};

void maximize(Floats& best, Words& place, Floats x, uint32_t index) {
    Ints greater = (x > best) | (x != x);  // NaN counts as the maximum, as in PyTorch
    best = greater ? x : best;
    place = greater ? Words{} + index : place;
}

Pooled max_pool(const uint16_t* top, const uint16_t* bottom, int64_t channels) {
    Pooled result{load(top), Words{}};
    const uint16_t* pixels[] = {top + channels, bottom, bottom + channels};
    Words odd_place{};
    for (uint32_t i = 0; i < 3; i++) {
        Group x = load(pixels[i]);
        maximize(result.value.even, result.place, x.even, i + 1);
        maximize(result.value.odd, odd_place, x.odd, i + 1);
    }
    result.place |= odd_place << 2;
    return result;
}

}  // namespace

// The arguments of both functions. fused_block.py has the same structure.
struct Block {
    int64_t images, channels, height, width;  // of the input
    int64_t pool;  // 1: with pooling, 0: without
    int64_t threads;
    double epsilon;
    const uint16_t* input;
    const float *weight, *bias;
    uint16_t* pooled;  // the input itself without pooling
    uint8_t* places;  // where the maxima were; a byte for two channels
    float *mean, *variance;  // of each channel; the variance without Bessel's correction
    uint16_t* output;
    const uint16_t* grad_output;
    uint16_t* grad_input;
    float *grad_weight, *grad_bias;
};

namespace {

// The rows of the pooled features of all images, in chunks that threads take.
struct Rows {
    int64_t height, width, count, per_chunk, chunks;

    explicit Rows(const Block& b)
        : height(b.pool ? b.height / 2 : b.height),
          width(b.pool ? b.width / 2 : b.width),
          count(b.images * height),
          per_chunk(width < kChunkPixels ? kChunkPixels / width : 1),
          chunks((count + per_chunk - 1) / per_chunk) {}

    int64_t begin(int64_t chunk) const { return chunk * per_chunk; }
    int64_t end(int64_t chunk) const { return chunk + 1 < chunks ? (chunk + 1) * per_chunk : count; }
    int64_t pixels() const { return count * width; }
};

// Adds sums of each chunk, [chunks][2][C], in their order.
std::vector<double> total(const std::vector<float>& sums, int64_t channels) {
    std::vector<double> result(2 * channels);
    for (size_t i = 0; i < sums.size(); i += 2 * channels)
        for (int64_t c = 0; c < 2 * channels; c++) result[c] += sums[i + c];
    return result;
}

const uint16_t* input_row(const Block& b, const Rows& rows, int64_t row) {
    int64_t stride = b.pool ? 2 : 1;
    return b.input + (row / rows.height * b.height + row % rows.height * stride) * b.width * b.channels;
}

template <bool kPool>
void forward(const Block& b) {
    const Rows rows(b);
    const int64_t channels = b.channels;
    // Sums are of differences from the first pixel. Otherwise, a mean that is large in relation to the standard deviation
    // would leave few digits of the variance.
    std::vector<float> pivot(channels), sums(rows.chunks * 2 * channels);
    for (int64_t c = 0; c < channels; c += kGroup) {
        const uint16_t* first = b.input + c;
        store(&pivot[c], kPool ? max_pool(first, first + b.width * channels, channels).value : load(first));
    }

#pragma omp parallel for schedule(static) num_threads(b.threads)
    for (int64_t chunk = 0; chunk < rows.chunks; chunk++) {
        float* chunk_sums = &sums[chunk * 2 * channels];
        for (int64_t row = rows.begin(chunk); row < rows.end(chunk); row++) {
            const uint16_t* top = input_row(b, rows, row);
            const uint16_t* bottom = top + b.width * channels;
            const int64_t first = row * rows.width * channels;
            if (kPool) {
                for (int64_t column = 0; column < rows.width; column++) {
                    for (int64_t c = 0; c < channels; c += kGroup) {
                        const int64_t from = 2 * column * channels + c, to = first + column * channels + c;
                        const Pooled result = max_pool(top + from, bottom + from, channels);
                        store(b.pooled + to, result.value);
                        const Bytes places = __builtin_convertvector(result.place, Bytes);
                        std::memcpy(b.places + to / 2, &places, sizeof places);
                    }
                }
            }
            for (int64_t c = 0; c < channels; c += kGroup) {
                const Group shift = load(&pivot[c]);
                Group sum = load(chunk_sums + c), squares = load(chunk_sums + channels + c);
                for (int64_t column = 0; column < rows.width; column++) {
                    const Group x = load(b.pooled + first + column * channels + c);
                    Group difference{x.even - shift.even, x.odd - shift.odd};
                    sum.even += difference.even;
                    sum.odd += difference.odd;
                    squares.even = fma(difference.even, difference.even, squares.even);
                    squares.odd = fma(difference.odd, difference.odd, squares.odd);
                }
                store(chunk_sums + c, sum);
                store(chunk_sums + channels + c, squares);
            }
        }
    }

    const std::vector<double> sum = total(sums, channels);
    const double count = double(rows.pixels());
    std::vector<float> mean(channels), scale(channels), offset(channels);
    for (int64_t c = 0; c < channels; c++) {
        const int64_t i = position(c);
        const double difference = sum[i] / count;
        double variance = sum[channels + i] / count - difference * difference;
        variance = variance < 0 ? 0 : variance;
        b.mean[c] = mean[i] = float(pivot[i] + difference);
        b.variance[c] = float(variance);
        scale[i] = float(b.weight[c] / std::sqrt(variance + b.epsilon));
        offset[i] = b.bias[c];
    }

#pragma omp parallel for schedule(static) num_threads(b.threads)
    for (int64_t chunk = 0; chunk < rows.chunks; chunk++) {
        for (int64_t i = rows.begin(chunk) * rows.width; i < rows.end(chunk) * rows.width; i++) {
            for (int64_t c = 0; c < channels; c += kGroup) {
                const Group m = load(&mean[c]), s = load(&scale[c]), o = load(&offset[c]);
                Group x = load(b.pooled + i * channels + c);
                x.even = fma(x.even - m.even, s.even, o.even);
                x.odd = fma(x.odd - m.odd, s.odd, o.odd);
                store(b.output + i * channels + c, {x.even * sigmoid(x.even), x.odd * sigmoid(x.odd)});
            }
        }
    }
}

// The gradient with respect to the normalized features: the derivative of SiLU times that of the output.
Floats silu_gradient(Floats grad_output, Floats normalized) {
    Floats s = sigmoid(normalized);
    return grad_output * fma(normalized * s, 1.0f - s, s);
}

template <bool kPool>
void backward(const Block& b) {
    const Rows rows(b);
    const int64_t channels = b.channels;
    std::vector<float> mean(channels), scale(channels), offset(channels), sums(rows.chunks * 2 * channels);
    for (int64_t c = 0; c < channels; c++) {
        const int64_t i = position(c);
        mean[i] = b.mean[c];
        scale[i] = float(b.weight[c] / std::sqrt(double(b.variance[c]) + b.epsilon));
        offset[i] = b.bias[c];
    }

#pragma omp parallel for schedule(static) num_threads(b.threads)
    for (int64_t chunk = 0; chunk < rows.chunks; chunk++) {
        float* chunk_sums = &sums[chunk * 2 * channels];
        for (int64_t row = rows.begin(chunk); row < rows.end(chunk); row++) {
            for (int64_t c = 0; c < channels; c += kGroup) {
                const Group m = load(&mean[c]), s = load(&scale[c]), o = load(&offset[c]);
                Group sum = load(chunk_sums + c), products = load(chunk_sums + channels + c);
                for (int64_t column = 0; column < rows.width; column++) {
                    const int64_t pixel = (row * rows.width + column) * channels + c;
                    Group x = load(b.pooled + pixel), grad = load(b.grad_output + pixel);
                    x = {x.even - m.even, x.odd - m.odd};
                    grad.even = silu_gradient(grad.even, fma(x.even, s.even, o.even));
                    grad.odd = silu_gradient(grad.odd, fma(x.odd, s.odd, o.odd));
                    sum.even += grad.even;
                    sum.odd += grad.odd;
                    products.even = fma(grad.even, x.even, products.even);
                    products.odd = fma(grad.odd, x.odd, products.odd);
                }
                store(chunk_sums + c, sum);
                store(chunk_sums + channels + c, products);
            }
        }
    }

    // The gradient of the input is scale * gradient - slope * (x - mean) - constant.
    const std::vector<double> sum = total(sums, channels);
    const double count = double(rows.pixels());
    std::vector<float> slope(channels), constant(channels);
    for (int64_t c = 0; c < channels; c++) {
        const int64_t i = position(c);
        const double inverse_variance = 1 / (double(b.variance[c]) + b.epsilon);
        b.grad_bias[c] = float(sum[i]);
        b.grad_weight[c] = float(sum[channels + i] * std::sqrt(inverse_variance));
        slope[i] = float(scale[i] * inverse_variance * sum[channels + i] / count);
        constant[i] = float(scale[i] * sum[i] / count);
    }

    const int64_t row_size = b.width * channels;
#pragma omp parallel for schedule(static) num_threads(b.threads)
    for (int64_t chunk = 0; chunk < rows.chunks; chunk++) {
        for (int64_t row = rows.begin(chunk); row < rows.end(chunk); row++) {
            uint16_t* top = b.grad_input + (input_row(b, rows, row) - b.input);
            uint16_t* bottom = top + row_size;
            for (int64_t column = 0; column < rows.width; column++) {
                for (int64_t c = 0; c < channels; c += kGroup) {
                    const Group m = load(&mean[c]), s = load(&scale[c]), o = load(&offset[c]);
                    const Group k = load(&slope[c]), constants = load(&constant[c]);
                    const int64_t pixel = (row * rows.width + column) * channels + c;
                    Group x = load(b.pooled + pixel), grad = load(b.grad_output + pixel);
                    x = {x.even - m.even, x.odd - m.odd};
                    grad.even = silu_gradient(grad.even, fma(x.even, s.even, o.even));
                    grad.odd = silu_gradient(grad.odd, fma(x.odd, s.odd, o.odd));
                    grad.even = fma(grad.even, s.even, -fma(x.even, k.even, constants.even));
                    grad.odd = fma(grad.odd, s.odd, -fma(x.odd, k.odd, constants.odd));
                    if (!kPool) {
                        stream(top + column * channels + c, pack(grad));
                        continue;
                    }
                    // Only the maximum of the four pixels has a gradient.
                    const Words words = pack(grad);
                    Bytes bytes;
                    std::memcpy(&bytes, b.places + pixel / 2, sizeof bytes);
                    Words place = __builtin_convertvector(bytes, Words);
                    uint16_t* pixels = top + 2 * column * channels + c;
                    uint16_t* targets[] = {pixels, pixels + channels, pixels + row_size, pixels + row_size + channels};
                    for (uint32_t i = 0; i < 4; i++) {
                        Words even = (place & 3u) == i ? words & 0xffffu : Words{};
                        Words odd = (place >> 2) == i ? words & 0xffff0000u : Words{};
                        stream(targets[i], even | odd);
                    }
                }
            }
            // Pooling drops an odd last column and row.
            if (kPool && b.width % 2) {
                std::memset(top + row_size - channels, 0, channels * sizeof *top);
                std::memset(bottom + row_size - channels, 0, channels * sizeof *top);
            }
            if (kPool && b.height % 2 && row % rows.height == rows.height - 1)
                std::memset(bottom + row_size, 0, row_size * sizeof *top);
        }
        finish_streaming();
    }
}

}  // namespace

extern "C" void fused_forward(const Block* b) { b->pool ? forward<true>(*b) : forward<false>(*b); }
extern "C" void fused_backward(const Block* b) { b->pool ? backward<true>(*b) : backward<false>(*b); }
