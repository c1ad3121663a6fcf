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

// Vectors of 64 bytes. On a CPU with shorter ones the compiler splits them.
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Bytes = uint8_t __attribute__((vector_size(16)));

constexpr int64_t kGroup = 32;  // channels that are computed together: a cache line of bfloat16 numbers

// Pixels that are summed in float32, before the sums are added in float64. Squares of bfloat16 numbers have 16 bits, so
// 256 of about the same size are summed exactly: a small variance around a large mean keeps its digits.
constexpr int64_t kChunkPixels = 256;

// A group of channels in float32. A word of memory holds two bfloat16 numbers. Its lower half is a channel with an even
// index, its upper half one with an odd index. To separate them takes less time than to keep them in order.
struct Group {
    Floats even, odd;
};

// Where a channel is among the numbers of groups.
int64_t position(int64_t channel) { return channel / 32 * 32 + channel % 2 * 16 + channel % 32 / 2; }

Group load(const uint16_t* features) {
    Words words;
    std::memcpy(&words, features, sizeof words);
    return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
}

Group load(const float* numbers) {
    Group group;
    std::memcpy(&group, numbers, sizeof group);
    return group;
}

void store(float* numbers, Group x) { std::memcpy(numbers, &x, sizeof x); }

// The bfloat16 number is the upper half of each word of the result.
Words round_to_bfloat16(Floats x) {
    const Words bits = (Words)x;
    const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    return x != x ? bits | 0x400000u : rounded;  // rounding could turn NaN into another number
}

Words pack(Group x) { return (round_to_bfloat16(x.even) >> 16) | (round_to_bfloat16(x.odd) & 0xffff0000u); }

void store(uint16_t* features, Words words) { std::memcpy(features, &words, sizeof words); }

void store(uint16_t* features, Group x) { store(features, pack(x)); }

Group operator+(Group a, Group b) { return {a.even + b.even, a.odd + b.odd}; }
Group operator-(Group a, Group b) { return {a.even - b.even, a.odd - b.odd}; }
Group operator*(Group a, Group b) { return {a.even * b.even, a.odd * b.odd}; }
Group operator-(float a, Group b) { return {a - b.even, a - b.odd}; }

// a * b + c, rounded once.
Floats fma(Floats a, Floats b, Floats c) {
    Floats result;
    for (int i = 0; i < 16; i++) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
}

Group fma(Group a, Group b, Group c) { return {fma(a.even, b.even, c.even), fma(a.odd, b.odd, c.odd)}; }

// 1 / (1 + exp(-x)), with a relative error below 1e-5.
Floats sigmoid(Floats x) {
    const Floats zero{};
    Floats exponent = x * -1.44269504f;  // exp(-x) = 2**exponent
    exponent = exponent < 126.0f ? exponent : zero + 126.0f;
    exponent = exponent > -126.0f ? exponent : zero - 126.0f;
    const float magic = 12582912.0f;  // 1.5 * 2**23: the sum is rounded to an integer, which is in its lowest bits
    const Floats rounded = exponent + magic;
    const Floats fraction = exponent - (rounded - magic);  // in [-0.5, 0.5]
    Floats power = fma(zero + 0.0096003955f, fraction, zero + 0.055916894f);  // 2**fraction, by least squares
    power = fma(power, fraction, zero + 0.24023719f);
    power = fma(power, fraction, zero + 0.693122f);
    power = fma(power, fraction, zero + 1.0f);
    power = (Floats)((Words)power + ((Words)rounded << 23));  // times 2**integer
    return 1.0f / (1.0f + power);
}

Group sigmoid(Group x) { return {sigmoid(x.even), sigmoid(x.odd)}; }

struct Maximum {
    Group value;
    Words place;  // 0 to 3 for the even channel, plus four times that for the odd one
};

void update_maximum(Floats& value, Words& place, Floats x, uint32_t new_place) {
    const Ints greater = (x > value) | (x != x);  // NaN is the maximum, as in PyTorch
    value = greater ? x : value;
    place = greater ? Words{} + new_place : place;
}

// Returns the maximum of two pixels each from two rows.
Maximum max_pool(const uint16_t* top, const uint16_t* bottom, int64_t channels) {
    Maximum maximum{load(top), {}};
    const uint16_t* pixels[] = {top + channels, bottom, bottom + channels};
    Words odd_place{};
    for (uint32_t i = 0; i < 3; i++) {
        const Group x = load(pixels[i]);
        update_maximum(maximum.value.even, maximum.place, x.even, i + 1);
        update_maximum(maximum.value.odd, odd_place, x.odd, i + 1);
    }
    maximum.place |= odd_place << 2;
    return maximum;
}

// The rows of the pooled features of all images.
struct Rows {
    int64_t height, width, channels, count, per_chunk, chunks, threads;

    explicit Rows(const Block& b)
        : height(b.pool ? b.height / 2 : b.height),
          width(b.pool ? b.width / 2 : b.width),
          channels(b.channels),
          count(b.images * height),
          per_chunk(width < kChunkPixels ? kChunkPixels / width : 1),
          chunks((count + per_chunk - 1) / per_chunk),
          threads(b.threads) {}

    double pixels() const { return double(count) * double(width); }

    // Where the first of the input's rows that are pooled to `row` begins.
    int64_t input_offset(const Block& b, int64_t row) const {
        return (row / height * b.height + row % height * (b.pool ? 2 : 1)) * b.width * channels;
    }

    // Calls function(row, chunk) for all rows. A thread takes whole chunks.
    template <typename Function>
    void for_each(Function function) const {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t begin = chunk * per_chunk, end = begin + per_chunk;
            for (int64_t row = begin; row < (end < count ? end : count); row++) function(row, chunk);
        }
    }
};

// Two sums of each channel, of each chunk and in all.
struct Sums {
    int64_t channels;
    std::vector<float> of_chunks;

    explicit Sums(const Rows& rows) : channels(rows.channels), of_chunks(2 * rows.chunks * rows.channels) {}

    float* first(int64_t chunk) { return &of_chunks[2 * chunk * channels]; }
    float* second(int64_t chunk) { return first(chunk) + channels; }

    std::vector<double> total() const {
        std::vector<double> result(2 * channels);
        for (size_t i = 0; i < of_chunks.size(); i++) result[i % result.size()] += of_chunks[i];
        return result;
    }
};

// Normalizes a group of channels.
struct GroupNormalization {
    Group mean, scale, offset;

    Group center(Group x) const { return x - mean; }
    Group normalize(Group centered) const { return fma(centered, scale, offset); }
};

// Normalized features are (x - mean) * scale + offset.
struct Normalization {
    std::vector<float> mean, scale, offset;

    explicit Normalization(const Block& b) : mean(b.channels), scale(b.channels), offset(b.channels) {
        for (int64_t c = 0; c < b.channels; c++) {
            const int64_t i = position(c);
            mean[i] = b.mean[c];
            scale[i] = float(b.weight[c] / std::sqrt(b.variance[c] + b.epsilon));
            offset[i] = b.bias[c];
        }
    }

    GroupNormalization group(int64_t c) const { return {load(&mean[c]), load(&scale[c]), load(&offset[c])}; }
};

template <bool kPool>
void forward(const Block& b) {
    const Rows rows(b);
    const int64_t channels = b.channels, row_size = rows.width * channels;

    Sums sums(rows);  // of x and of its square
    rows.for_each([&](int64_t row, int64_t chunk) {
        uint16_t* pooled = b.pooled + row * row_size;
        if (kPool) {
            const uint16_t* top = b.input + rows.input_offset(b, row);
            const uint16_t* bottom = top + b.width * channels;
            uint8_t* places = b.places + row * row_size / 2;
            for (int64_t column = 0; column < rows.width; column++) {
                for (int64_t c = 0; c < channels; c += kGroup) {
                    const int64_t from = 2 * column * channels + c, to = column * channels + c;
                    const Maximum maximum = max_pool(top + from, bottom + from, channels);
                    store(pooled + to, maximum.value);
                    const Bytes place = __builtin_convertvector(maximum.place, Bytes);
                    std::memcpy(places + to / 2, &place, sizeof place);
                }
            }
        }
        for (int64_t c = 0; c < channels; c += kGroup) {
            Group sum = load(sums.first(chunk) + c), squares = load(sums.second(chunk) + c);
            for (int64_t i = c; i < row_size; i += channels) {
                const Group x = load(pooled + i);
                sum = sum + x;
                squares = fma(x, x, squares);
            }
            store(sums.first(chunk) + c, sum);
            store(sums.second(chunk) + c, squares);
        }
    });

    const std::vector<double> total = sums.total();
    for (int64_t c = 0; c < channels; c++) {
        const double mean = total[position(c)] / rows.pixels();
        const double variance = total[channels + position(c)] / rows.pixels() - mean * mean;
        b.mean[c] = float(mean);
        b.variance[c] = variance < 0 ? 0.0f : float(variance);  // rounding can make it negative
    }

    const Normalization norm(b);
    rows.for_each([&](int64_t row, int64_t) {
        for (int64_t i = row * row_size; i < (row + 1) * row_size; i += channels) {
            for (int64_t c = 0; c < channels; c += kGroup) {
                const GroupNormalization group = norm.group(c);
                const Group x = group.normalize(group.center(load(b.pooled + i + c)));
                store(b.output + i + c, x * sigmoid(x));
            }
        }
    });
}

// Returns the gradient with respect to the normalized features x.
Group silu_gradient(Group grad_output, Group x) {
    const Group s = sigmoid(x);
    return grad_output * fma(x * s, 1.0f - s, s);
}

template <bool kPool>
void backward(const Block& b) {
    const Rows rows(b);
    const Normalization norm(b);
    const int64_t channels = b.channels, row_size = rows.width * channels, input_row_size = b.width * channels;

    Sums sums(rows);  // of the gradient with respect to the normalized features, and of its product with x - mean
    rows.for_each([&](int64_t row, int64_t chunk) {
        for (int64_t c = 0; c < channels; c += kGroup) {
            const GroupNormalization group = norm.group(c);
            Group sum = load(sums.first(chunk) + c), products = load(sums.second(chunk) + c);
            for (int64_t i = row * row_size + c; i < (row + 1) * row_size; i += channels) {
                const Group x = group.center(load(b.pooled + i));
                const Group grad = silu_gradient(load(b.grad_output + i), group.normalize(x));
                sum = sum + grad;
                products = fma(grad, x, products);
            }
            store(sums.first(chunk) + c, sum);
            store(sums.second(chunk) + c, products);
        }
    });

    // The gradient of the pooled features is scale * grad - slope * (x - mean) - constant.
    std::vector<float> slope(channels), constant(channels);
    const std::vector<double> total = sums.total();
    for (int64_t c = 0; c < channels; c++) {
        const int64_t i = position(c);
        const double sum = total[i], product = total[channels + i];
        const double variance = b.variance[c] + b.epsilon;
        b.grad_bias[c] = float(sum);
        b.grad_weight[c] = float(product / std::sqrt(variance));
        slope[i] = float(norm.scale[i] * product / variance / rows.pixels());
        constant[i] = float(norm.scale[i] * sum / rows.pixels());
    }

    rows.for_each([&](int64_t row, int64_t) {
        uint16_t* grad_input = b.grad_input + rows.input_offset(b, row);
        for (int64_t column = 0; column < rows.width; column++) {
            for (int64_t c = 0; c < channels; c += kGroup) {
                const int64_t i = row * row_size + column * channels + c;
                const GroupNormalization group = norm.group(c);
                const Group x = group.center(load(b.pooled + i));
                Group grad = silu_gradient(load(b.grad_output + i), group.normalize(x));
                grad = grad * group.scale - fma(x, load(&slope[c]), load(&constant[c]));
                if (!kPool) {
                    store(grad_input + column * channels + c, grad);
                    continue;
                }
                // The maximum has the gradient, and the three other pixels have none.
                Bytes bytes;
                std::memcpy(&bytes, b.places + i / 2, sizeof bytes);
                const Words place = __builtin_convertvector(bytes, Words), words = pack(grad);
                uint16_t* top = grad_input + 2 * column * channels + c;
                uint16_t* bottom = top + input_row_size;
                uint16_t* pixels[] = {top, top + channels, bottom, bottom + channels};
                for (uint32_t j = 0; j < 4; j++) {
                    const Words even = (place & 3u) == j ? words & 0xffffu : Words{};
                    const Words odd = place >> 2 == j ? words & 0xffff0000u : Words{};
                    store(pixels[j], even | odd);
                }
            }
        }
        // Pooling drops the last column and the last row if their number is odd.
        if (kPool && b.width % 2) {
            for (int64_t end : {input_row_size, 2 * input_row_size})
                std::memset(grad_input + end - channels, 0, channels * sizeof *grad_input);
        }
        if (kPool && b.height % 2 && row % rows.height == rows.height - 1)
            std::memset(grad_input + 2 * input_row_size, 0, input_row_size * sizeof *grad_input);
    });
}

}  // namespace

extern "C" void fused_forward(const Block* b) { b->pool ? forward<true>(*b) : forward<false>(*b); }
extern "C" void fused_backward(const Block* b) { b->pool ? backward<true>(*b) : backward<false>(*b); }
