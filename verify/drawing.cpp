// The sampler of `verify.sampler`, whose words say what is meant here, for as long as it is sure of the outcome.
//
// Sums in another order, or another library's exp and log, may end in other last bits. Where those could change which
// token is drawn, or where a nucleus ends, `draw` answers UNSURE, and `verify.sampler` does it as it is defined. So the
// outcome is the same with any compiler, and what is here may use whatever order is quickest.
//
// Theory of operation. One pass over the logits finds the largest of each block of tokens. Most blocks then need no
// second look: no token of theirs is among the first k, or their largest logit is so far below the best z so far that
// only noise of the highest coarse byte could pass it, and eight coarse bytes come with one word.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <vector>

#ifdef __FAST_MATH__
#error "Compile this without -ffast-math: it tells NaN from numbers, and knows how far sums may be off."
#endif

namespace {

constexpr long long NOTHING = -1;
constexpr long long UNSURE = -2;

constexpr double MILLION = 1e6;
constexpr double INFINITE = std::numeric_limits<double>::infinity();
constexpr float LEAST = -std::numeric_limits<float>::infinity();
// Of z by the library's logarithms, relative: above its true error by six orders of magnitude.
constexpr double ROUGH_ERROR = 1e-9;
// Of a weight, relative: above its true error tenfold. Additions come on top, with a unit of 2^-53 each.
constexpr double WEIGHT_ERROR = 1e-10;
constexpr size_t BLOCK = 64;   // tokens; of whole words of coarse bytes
constexpr size_t CHUNK = 512;  // tokens whose weights are made at once
// Slices by depth below the likeliest token, in which the mass is summed. The last has what lies deeper than min-p ever
// keeps: a millionth of the likeliest, 13.8 temperatures below it.
constexpr int32_t SLICES = 4096, DEEPER = SLICES - 1;
constexpr double DEEPEST = 14.0;

// As a record's `Sampling`, in ones.
struct Sampling {
    double temperature;
    double top_p;
    double min_p;
    size_t top_k;
};

// Four numbers at once, in the way of GCC and Clang.
using Four = float __attribute__((vector_size(16)));
using Mask = int32_t __attribute__((vector_size(16)));

Four larger(Four one, Four other) { return one > other ? one : other; }

// exp of a number that is not above 0, as good as 0 from -700 on, without branches: loops over it become vectors.
// Relative error below 1e-11: of the Taylor series behind its 11th power, at most ln(2) / 2 from 0.
inline double exponential(double x) {
    x = x > -700.0 ? x : -700.0;
    const double shifted = x * 1.4426950408889634 + 0x1.8p52;  // in whose last bits now stands the power of two
    const double power = shifted - 0x1.8p52;
    const double rest = (x - power * 0x1.62e42feep-1) - power * 0x1.a39ef35793c76p-33;
    // Estrin's order, in which additions wait for each other less than in Horner's.
    const double second = rest * rest, fourth = second * second;
    const double low = (1.0 + rest) + second * (1.0 / 2 + rest * (1.0 / 6));
    const double middle = (1.0 / 24 + rest * (1.0 / 120)) + second * (1.0 / 720 + rest * (1.0 / 5040));
    const double high = (1.0 / 40320 + rest * (1.0 / 362880)) + second * (1.0 / 3628800 + rest * (1.0 / 39916800));
    double sum = low + fourth * (middle + fourth * high);
    uint64_t bits, steps;
    std::memcpy(&bits, &sum, sizeof bits);
    std::memcpy(&steps, &shifted, sizeof steps);
    bits += steps << 52;
    std::memcpy(&sum, &bits, sizeof sum);
    return sum;
}

// SplitMix64.
constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15u;
constexpr uint64_t FINE = uint64_t{1} << 32;

uint64_t output(uint64_t state, uint64_t index) {
    uint64_t word = state + (index + 1) * GAMMA;
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
}

unsigned byte_of(uint64_t word, size_t id) { return static_cast<unsigned>(word >> (8 * (id % 8))) & 255u; }

// Whether one of the eight bytes is 255; sometimes also where none is.
bool may_have_highest(uint64_t word) {
    return ((~word - 0x0101010101010101u) & word & 0x8080808080808080u) != 0;
}

// No noise of a token with this coarse byte is above; of the highest byte, the largest noise there is.
std::array<double, 256> most_noise() {
    std::array<double, 256> most{};
    for (int byte = 0; byte < 255; ++byte) most[static_cast<size_t>(byte)] = -std::log(-std::log((byte + 1) / 256.0));
    most[255] = 36.8;
    return most;
}

const std::array<double, 256> MOST = most_noise();
constexpr double COARSE_MOST = 5.55;  // above all but the last of them

struct Token {
    float logit;
    uint32_t id;
};

bool ranks_before(const Token &one, const Token &other) {
    return one.logit > other.logit || (one.logit == other.logit && one.id < other.id);
}

// What of a vocabulary may be drawn: logits not below the floor, and ranks up to the edge's.
struct Cut {
    double floor;
    Token edge;

    bool keeps(const Token &token) const { return token.logit >= floor && !ranks_before(edge, token); }
};

// The largest z so far, and whether another comes too near to it.
class Race {
  public:
    Race(double temperature, uint64_t state) : temperature_(temperature), state_(state) {}

    void consider(const Token &token, unsigned byte) {
        if (token.logit + temperature_ * MOST[byte] < least_) return;
        const uint64_t hash = (uint64_t{byte} << 56) | (output(state_, FINE + token.id) >> 8);
        const double u = static_cast<double>((hash >> 11) | 1) * 0x1p-53;
        const double z = token.logit - temperature_ * std::log(-std::log(u));
        if (z > best_) {
            second_ = best_;
            best_ = z;
            winner_ = token.id;
            least_ = z - 2 * ROUGH_ERROR * (temperature_ + std::fabs(z));
        } else if (z > second_) {
            second_ = z;
        }
    }

    // No token with a lower z can win.
    double least() const { return least_; }
    long long winner() const { return second_ < least_ ? winner_ : UNSURE; }

  private:
    double temperature_;
    uint64_t state_;
    double best_ = -INFINITE, second_ = -INFINITE, least_ = -INFINITE;
    long long winner_ = UNSURE;
};

// The logits of one position.
class Row {
  public:
    Row(const float *logits, size_t size) : logits_(logits), size_(size), largest_((size + BLOCK - 1) / BLOCK) {}

    long long draw(const Sampling &sampling, uint64_t state) {
        if (!look()) return NOTHING;
        if (sampling.temperature == 0) return first_of_the_largest();
        const double floor = peak_ + sampling.temperature * std::log(std::max(sampling.min_p, 1 / MILLION));
        if (0 < sampling.top_k && sampling.top_k < size_) return draw_of_first(sampling, floor, state);
        Cut cut{floor, {LEAST, UINT32_MAX}};
        if (sampling.top_p < 1 && !cut_nucleus(sampling, cut)) return UNSURE;
        return draw_of_all(sampling.temperature, cut, state);
    }

  private:
    size_t end(size_t block) const { return std::min(size_, (block + 1) * BLOCK); }
    Token token(size_t id) const { return {logits_[id], static_cast<uint32_t>(id)}; }

    // Finds the largest of each block and of all; false if nothing can be drawn: one is NaN, or the largest not finite.
    bool look() {
        float peak = LEAST;
        Mask nan{};
        for (size_t block = 0; block < largest_.size(); ++block) {
            const float *from = logits_ + block * BLOCK;
            float padded[BLOCK];
            if (end(block) < (block + 1) * BLOCK) {
                std::fill(std::copy(from, logits_ + size_, padded), padded + BLOCK, LEAST);
                from = padded;
            }
            std::array<Four, 4> most;
            most.fill(Four{LEAST, LEAST, LEAST, LEAST});
            for (size_t start = 0; start < BLOCK; start += 4 * most.size()) {
                for (size_t place = 0; place < most.size(); ++place) {
                    Four own;
                    std::memcpy(&own, from + start + 4 * place, sizeof own);
                    most[place] = larger(own, most[place]);
                    nan |= own != own;
                }
            }
            const Four two = larger(larger(most[0], most[1]), larger(most[2], most[3]));
            largest_[block] = std::max(std::max(two[0], two[1]), std::max(two[2], two[3]));
            peak = std::max(peak, largest_[block]);
        }
        peak_ = peak;
        return std::isfinite(peak) && (nan[0] | nan[1] | nan[2] | nan[3]) == 0;
    }

    size_t block_of_the_largest() const {
        const auto reaches = [this](float largest) { return largest == peak_; };
        return static_cast<size_t>(std::find_if(largest_.begin(), largest_.end(), reaches) - largest_.begin());
    }

    long long first_of_the_largest() const {
        size_t id = block_of_the_largest() * BLOCK;
        while (logits_[id] != peak_) ++id;
        return static_cast<long long>(id);
    }

    long long draw_of_all(double temperature, const Cut &cut, uint64_t state) const {
        Race race(temperature, state);
        const size_t first = block_of_the_largest();
        for (size_t turn = 0; turn < largest_.size(); ++turn) {
            const size_t block = (first + turn) % largest_.size();
            for (size_t start = block * BLOCK; start < end(block); start += 8) {
                const uint64_t word = output(state, start / 8);
                const bool any = largest_[block] >= race.least() - COARSE_MOST * temperature;
                if (!any && !may_have_highest(word)) continue;
                for (size_t id = start; id < std::min(start + 8, size_); ++id) {
                    const unsigned byte = byte_of(word, id);
                    if ((any || byte == 255) && cut.keeps(token(id))) race.consider(token(id), byte);
                }
            }
        }
        return race.winner();
    }

    // With top-k.
    long long draw_of_first(const Sampling &sampling, double floor, uint64_t state) const {
        const size_t top_k = sampling.top_k;
        const auto rank = static_cast<std::ptrdiff_t>(top_k) - 1;
        double bound = floor;
        if (top_k <= largest_.size()) {
            // So many blocks have a token that is not below, and so what top-k keeps is not below either.
            std::vector<float> largest(largest_);
            std::nth_element(largest.begin(), largest.begin() + rank, largest.end(), std::greater<float>());
            bound = std::max(bound, static_cast<double>(largest[top_k - 1]));
        }
        std::vector<Token> tokens;
        for (size_t block = 0; block < largest_.size(); ++block) {
            if (largest_[block] < bound) continue;
            for (size_t id = block * BLOCK; id < end(block); ++id) {
                if (logits_[id] >= bound) tokens.push_back(token(id));
            }
        }
        if (tokens.size() > top_k) {
            std::nth_element(tokens.begin(), tokens.begin() + rank, tokens.end(), ranks_before);
            tokens.resize(top_k);
            bound = tokens.back().logit;
        }
        if (sampling.top_p < 1) {
            std::sort(tokens.begin(), tokens.end(), ranks_before);
            const size_t nucleus = nucleus_of(tokens, bound, sampling);
            if (nucleus == 0) return UNSURE;
            tokens.resize(nucleus);
        }
        Race race(sampling.temperature, state);
        for (const Token &one : tokens) race.consider(one, byte_of(output(state, one.id / 8), one.id));
        return race.winner();
    }

    // Relative to the likeliest's.
    double weight(double logit, double temperature) const { return exponential((logit - peak_) / temperature); }

    void weigh(const float *logits, size_t count, double temperature, double *weights) const {
        const double peak = peak_;  // which no weight overwrites, for all that the compiler can tell
        for (size_t place = 0; place < count; ++place) {
            weights[place] = exponential((logits[place] - peak) / temperature);
        }
    }

    double total(const float *logits, size_t count, double temperature) const {
        double sum = 0, weights[CHUNK];
        for (size_t start = 0; start < count; start += CHUNK) {
            const size_t some = std::min(CHUNK, count - start);
            weigh(logits + start, some, temperature, weights);
            sum = std::accumulate(weights, weights + some, sum);
        }
        return sum;
    }

    // Of sums over the vocabulary, relative.
    double sum_error() const { return WEIGHT_ERROR + static_cast<double>(size_) * 0x1p-52; }

    // How many of these, the first in rank, top-p keeps, 0 if that cannot be told; no other token is above `bound`.
    size_t nucleus_of(const std::vector<Token> &tokens, double bound, const Sampling &sampling) const {
        std::vector<double> upto;
        double sum = 0;
        for (const Token &one : tokens) upto.push_back(sum += weight(one.logit, sampling.temperature));
        const auto kept = [&](double all) {
            const auto end = std::lower_bound(upto.begin(), upto.end() - 1, all * sampling.top_p);
            return 1 + static_cast<size_t>(end - upto.begin());
        };
        const auto told = [&](double least, double most) {
            const size_t nucleus = kept(least * (1 - sum_error()));
            return nucleus == upto.size() || nucleus == kept(most * (1 + sum_error())) ? nucleus : 0;
        };
        // The exact total takes longer than all the rest, and most cuts are the same for its least and its most.
        const double heaviest = total(largest_.data(), largest_.size(), sampling.temperature);
        const double others = static_cast<double>(size_ - tokens.size()) * weight(bound, sampling.temperature);
        if (const size_t nucleus = told(std::max(heaviest, sum), sum + others)) return nucleus;
        const double all = total(logits_, size_, sampling.temperature);
        return told(all, all);
    }

    // Moves the cut to where top-p has it among all tokens; false if that cannot be told.
    bool cut_nucleus(const Sampling &sampling, Cut &cut) const {
        const double scale = DEEPER / (DEEPEST * sampling.temperature);
        const auto depth = [&](float logit) { return (peak_ - logit) * scale; };  // in slices
        std::array<double, SLICES> sums{};
        for (size_t start = 0; start < size_; start += CHUNK) {
            const size_t count = std::min(CHUNK, size_ - start);
            double weights[CHUNK];
            int32_t slices[CHUNK];
            weigh(logits_ + start, count, sampling.temperature, weights);
            for (size_t place = 0; place < count; ++place) {
                slices[place] = static_cast<int32_t>(std::min(depth(logits_[start + place]), double{DEEPER}));
            }
            for (size_t place = 0; place < count; ++place) sums[static_cast<size_t>(slices[place])] += weights[place];
        }
        const double target = std::accumulate(sums.begin(), sums.end(), 0.0) * sampling.top_p;
        const double least = target * (1 - sum_error()), most = target * (1 + sum_error());
        double upto = 0;
        int32_t slice = 0;
        for (; slice < DEEPER && upto + sums[static_cast<size_t>(slice)] <= most; ++slice) {
            upto += sums[static_cast<size_t>(slice)];
        }
        if (slice == DEEPER) return upto < least;  // then min-p cuts before
        std::vector<Token> tokens;
        for (size_t block = 0; block < largest_.size(); ++block) {
            if (depth(largest_[block]) >= slice + 1) continue;
            for (size_t id = block * BLOCK; id < end(block); ++id) {
                const double own = depth(logits_[id]);
                if ((own >= slice) & (own < slice + 1)) tokens.push_back(token(id));
            }
        }
        std::sort(tokens.begin(), tokens.end(), ranks_before);
        for (const Token &one : tokens) {
            if (upto > most) break;
            if (upto >= least) return false;
            cut.edge = one;
            upto += weight(one.logit, sampling.temperature);
        }
        return upto > most;
    }

    const float *logits_;
    size_t size_;
    std::vector<float> largest_;
    double peak_ = -INFINITE;
};

// Unsigned and of 64 bits; otherwise an error is set.
uint64_t word_of(PyObject *number) {
    PyObject *index = PyNumber_Index(number);
    if (index == nullptr) return 0;
    const uint64_t word = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    return word;
}

bool is_block(const Py_buffer &view) {
    // "f", with or without the sign of this machine's order of bytes before it.
    const char *format = view.format == nullptr ? "" : view.format;
    const char *signs = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? "@=<" : "@=>!";
    if (*format != '\0' && std::strchr(signs, *format) != nullptr) ++format;
    // ctypes leaves out the strides.
    if (view.ndim != 2 || std::strcmp(format, "f") != 0 || view.strides == nullptr) return false;
    const bool in_one_piece = view.strides[1] == sizeof(float) || view.shape[1] <= 1;
    const bool aligned = reinterpret_cast<uintptr_t>(view.buf) % alignof(float) == 0 && view.strides[0] % 4 == 0;
    return in_one_piece && aligned && static_cast<uint64_t>(view.shape[1]) < FINE;
}

PyObject *draw(PyObject *, PyObject *arguments) {
    PyObject *block, *seed, *position;
    int row, temperature, top_p, min_p;
    long long top_k;
    const char *format = "OiiiiLOO";
    if (!PyArg_ParseTuple(arguments, format, &block, &row, &temperature, &top_p, &min_p, &top_k, &seed, &position)) {
        return nullptr;
    }
    const uint64_t seed_word = word_of(seed);
    if (PyErr_Occurred()) return nullptr;
    const uint64_t position_word = word_of(position);
    if (PyErr_Occurred()) return nullptr;
    Py_buffer view;
    if (PyObject_GetBuffer(block, &view, PyBUF_STRIDES | PyBUF_FORMAT) < 0) return nullptr;
    PyObject *found = nullptr;
    const bool in_range = temperature >= 0 && top_p >= 0 && 0 <= min_p && min_p <= MILLION && top_k >= 0;
    if (!is_block(view) || row < 0 || row >= view.shape[0] || !in_range) {
        PyErr_SetString(PyExc_ValueError,
                        "give logits (R, V) as 32-bit floats, the number of a row, and what a Sampling may hold");
    } else {
        try {
            const auto *bytes = static_cast<const char *>(view.buf) + row * view.strides[0];
            Row logits(reinterpret_cast<const float *>(bytes), static_cast<size_t>(view.shape[1]));
            const Sampling sampling{
                temperature / MILLION, top_p / MILLION, min_p / MILLION, static_cast<size_t>(top_k)};
            found = PyLong_FromLongLong(logits.draw(sampling, output(output(seed_word, 0), position_word)));
        } catch (const std::bad_alloc &) {
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&view);
    return found;
}

int fill(PyObject *module) {
    const bool failed = PyModule_AddIntConstant(module, "NOTHING", NOTHING) < 0 ||
                        PyModule_AddIntConstant(module, "UNSURE", UNSURE) < 0;
    return failed ? -1 : 0;
}

PyMethodDef methods[] = {{"draw", draw, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void *>(fill)}, {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "verify.drawing", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_drawing() { return PyModuleDef_Init(&definition); }
