// The gradient of the weight of a convolution in bfloat16, with the instruction VDPBF16PS of AVX512_BF16.
// avx512_weight_gradient.py calls it.
//
// The gradient is a matrix product. A row for each output channel holds the gradient of the output at all pixels. A
// column for each input channel and each position in the filter (tap) holds the input, shifted by the tap. The sum goes
// over the pixels, of which the instruction multiplies two at once, so both matrices are interleaved: a word of memory
// holds the numbers of two consecutive pixels. Blocks of 256 pixels are interleaved just before they are used, while
// they are in the cache.
//
// The bits of the result do not depend on the number of threads.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// The argument. avx512_weight_gradient.py has the same structure. Features are bfloat16 [N, H, W, C], where the number
// of input channels is a multiple of 32 and that of output channels of 16. `height` and `width` are those of the input.
struct Convolution {
    int64_t images, height, width, in_channels, out_channels, kernel, padding, threads;
    const uint16_t *input, *grad_output;
    float* grad_weight;  // [out_channels, kernel, kernel, in_channels]
};

namespace {

constexpr int64_t kPairs = 128, kPixels = 2 * kPairs;  // of a block
constexpr int64_t kRows = 8, kColumns = 32;            // of a tile, whose 256 sums are in 16 of the 32 registers

struct alignas(64) Line {
    uint32_t words[16];
};

// 16 channels of two pixels: a word holds a channel of pixel `a` in its lower half and that of `b` in its upper half.
__m512i interleave(const uint16_t* a, const uint16_t* b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Adds the products of a block to a tile of sums, [kRows, kColumns]. `rows` is [kPairs, kRows] and `columns` is
// [kPairs, kColumns].
void multiply(float* sums, const uint32_t* rows, const uint32_t* columns) {
    __m512 tile[kRows][2];
    for (int64_t i = 0; i < kRows; i++) {
        for (int64_t j = 0; j < 2; j++) tile[i][j] = _mm512_loadu_ps(sums + i * kColumns + 16 * j);
    }
    for (int64_t pair = 0; pair < kPairs; pair++) {
        const auto left = (__m512bh)_mm512_load_si512(columns + pair * kColumns);
        const auto right = (__m512bh)_mm512_load_si512(columns + pair * kColumns + 16);
        for (int64_t i = 0; i < kRows; i++) {
            const auto row = (__m512bh)_mm512_set1_epi32(int32_t(rows[pair * kRows + i]));
            tile[i][0] = _mm512_dpbf16_ps(tile[i][0], row, left);
            tile[i][1] = _mm512_dpbf16_ps(tile[i][1], row, right);
        }
    }
    for (int64_t i = 0; i < kRows; i++) {
        for (int64_t j = 0; j < 2; j++) _mm512_storeu_ps(sums + i * kColumns + 16 * j, tile[i][j]);
    }
}

// How the work is divided. A panel has kColumns columns; a panel of sums is [out_channels, kColumns].
struct Plan {
    int64_t out_height, out_width, image_pixels, pixels, taps, columns, panels, blocks, slices, groups;

    explicit Plan(const Convolution& c)
        : out_height(c.height + 2 * c.padding - c.kernel + 1),
          out_width(c.width + 2 * c.padding - c.kernel + 1),
          image_pixels(out_height * out_width),
          pixels(c.images * image_pixels),
          taps(c.kernel * c.kernel),
          columns(taps * c.in_channels),
          panels(columns / kColumns),
          blocks((pixels + kPixels - 1) / kPixels),
          // Each slice of the blocks has its own sums. With many pixels, two slices save reading them twice.
          slices(blocks > 1 && pixels > 32 * columns ? 2 : 1),
          groups(std::min(panels, c.threads % slices ? c.threads : c.threads / slices)) {}
};

// For each tap and each pixel of the output, the pixel of the input image that the tap reads, or -1 outside of it.
std::vector<int32_t> find_input_pixels(const Convolution& c, const Plan& plan) {
    std::vector<int32_t> result;
    result.reserve(plan.taps * plan.image_pixels);
    for (int64_t tap = 0; tap < plan.taps; tap++) {
        for (int64_t pixel = 0; pixel < plan.image_pixels; pixel++) {
            const int64_t y = pixel / plan.out_width + tap / c.kernel - c.padding;
            const int64_t x = pixel % plan.out_width + tap % c.kernel - c.padding;
            const bool is_inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
            result.push_back(is_inside ? int32_t(y * c.width + x) : -1);
        }
    }
    return result;
}

// The sums over a slice of the pixels, of a group of the panels.
class Task {
public:
    Task(const Convolution& convolution, const Plan& plan, const std::vector<int32_t>& input_pixels)
        : c(convolution),
          plan(plan),
          input_pixels(input_pixels),
          zeros(std::max(c.in_channels, c.out_channels)),
          row_lines(c.out_channels * kPairs / 16),
          column_lines(kColumns * kPairs / 16) {}

    void run(int64_t slice, int64_t group, float* sums) {
        const int64_t first_panel = plan.panels * group / plan.groups, last = plan.panels * (group + 1) / plan.groups;
        const int64_t end = plan.blocks * (slice + 1) / plan.slices;
        for (int64_t block = plan.blocks * slice / plan.slices; block < end; block++) {
            load_rows(block * kPixels);
            for (int64_t panel = first_panel; panel < last; panel++) {
                const int64_t tap = panel * kColumns / c.in_channels;
                if (panel == first_panel || panel * kColumns % c.in_channels == 0) find_sources(block * kPixels, tap);
                load_columns(panel * kColumns % c.in_channels);
                for (int64_t row = 0; row < c.out_channels; row += kRows) {
                    multiply(sums + (panel * c.out_channels + row) * kColumns, rows() + row * kPairs, columns());
                }
            }
        }
    }

private:
    uint32_t* rows() { return row_lines[0].words; }
    uint32_t* columns() { return column_lines[0].words; }

    void load_rows(int64_t first) {
        for (int64_t pair = 0; pair < kPairs; pair++) {
            const uint16_t *a = grad_output(first + 2 * pair), *b = grad_output(first + 2 * pair + 1);
            for (int64_t channel = 0; channel < c.out_channels; channel += 2 * kRows) {
                const __m512i words = interleave(a + channel, b + channel);
                uint32_t* tile = rows() + channel * kPairs + pair * kRows;
                _mm256_store_si256(reinterpret_cast<__m256i*>(tile), _mm512_castsi512_si256(words));
                tile += kRows * kPairs;
                _mm256_store_si256(reinterpret_cast<__m256i*>(tile), _mm512_extracti64x4_epi64(words, 1));
            }
        }
    }

    const uint16_t* grad_output(int64_t pixel) const {
        return pixel < plan.pixels ? c.grad_output + pixel * c.out_channels : zeros.data();
    }

    // Where the input is that the tap reads for each pixel of a block.
    void find_sources(int64_t first, int64_t tap) {
        const int32_t* of_tap = &input_pixels[tap * plan.image_pixels];
        int64_t image = first / plan.image_pixels, in_image = first % plan.image_pixels;
        for (int64_t i = 0; i < kPixels; i++) {
            const bool is_inside = first + i < plan.pixels && of_tap[in_image] >= 0;
            const int64_t pixel = image * c.height * c.width + of_tap[in_image];
            sources[i] = is_inside ? c.input + pixel * c.in_channels : zeros.data();
            if (++in_image == plan.image_pixels) in_image = 0, image++;
        }
    }

    void load_columns(int64_t channel) {
        for (int64_t pair = 0; pair < kPairs; pair++) {
            const uint16_t *a = sources[2 * pair] + channel, *b = sources[2 * pair + 1] + channel;
            _mm512_store_si512(columns() + pair * kColumns, interleave(a, b));
            _mm512_store_si512(columns() + pair * kColumns + 16, interleave(a + 16, b + 16));
        }
    }

    const Convolution& c;
    const Plan& plan;
    const std::vector<int32_t>& input_pixels;
    const std::vector<uint16_t> zeros;
    std::vector<Line> row_lines, column_lines;
    const uint16_t* sources[kPixels];
};

}  // namespace

extern "C" void weight_gradient(const Convolution* convolution) {
    const Convolution& c = *convolution;
    const Plan plan(c);
    const std::vector<int32_t> input_pixels = find_input_pixels(c, plan);
    const int64_t size = plan.columns * c.out_channels;
    std::vector<float> sums(plan.slices * size);
#pragma omp parallel for schedule(static, 1) num_threads(c.threads)
    for (int64_t i = 0; i < plan.slices * plan.groups; i++) {
        Task(c, plan, input_pixels).run(i / plan.groups, i % plan.groups, &sums[i / plan.groups * size]);
    }
    for (int64_t channel = 0; channel < c.out_channels; channel++) {
        for (int64_t column = 0; column < plan.columns; column++) {
            const float* sum = &sums[(column / kColumns * c.out_channels + channel) * kColumns + column % kColumns];
            c.grad_weight[channel * plan.columns + column] = plan.slices == 1 ? sum[0] : sum[0] + sum[size];
        }
    }
}
