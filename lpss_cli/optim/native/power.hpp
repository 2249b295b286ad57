// Powers of many numbers ≥ 0 at once, in loops that compilers can vectorize.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// How many numbers are raised to a power at a time: few enough for the first-level cache.
constexpr int64_t BLOCK = 512;

// Raises blocks of numbers to an exponent > 0. Results below the smallest normal number become 0,
// because the arithmetic of denormals is slow.
template <class T> class Power {
public:
  const double exponent;

  explicit Power(double e) : exponent(e), doubled_(halves(e)) {
    const double smallest = std::numeric_limits<T>::min();
    least_ = static_cast<T>(std::pow(smallest, 1 / std::max(1.0, e)));
  }

  // x ← x^e for n ≤ BLOCK numbers.
  void operator()(T *x, int64_t n) const {
    if (doubled_ == 0)
      by_exponential(x, n);
    else if (doubled_ != 2)
      by_products(x, n);
  }

private:
  int64_t doubled_; // 2e where it is an integer and products are cheaper, else 0
  T least_;         // smaller numbers give 0

  static int64_t halves(double e) {
    const double twice = std::nearbyint(2 * e);
    const bool whole = std::abs(2 * e - twice) < 1e-9 && 1 <= twice && twice <= 128;
    return whole ? static_cast<int64_t>(twice) : 0;
  }

  // Exponentiation by squaring, from the lowest bit of the exponent to the highest.
  void by_products(T *x, int64_t n) const {
    T base[BLOCK];
    const T least = least_;
    const bool root = doubled_ & 1, once = doubled_ & 2;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T b = x[i] < least ? T(0) : x[i];
      x[i] = (root ? std::sqrt(b) : T(1)) * (once ? b : T(1));
      base[i] = b * b;
    }
    for (int64_t bits = doubled_ >> 2; bits; bits >>= 1) {
      const bool factor = bits & 1;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        x[i] *= factor ? base[i] : T(1);
        base[i] *= base[i];
      }
    }
  }

  void by_exponential(T *x, int64_t n) const;
};

template <> inline void Power<double>::by_exponential(double *x, int64_t n) const {
  for (int64_t i = 0; i < n; ++i)
    x[i] = x[i] < least_ ? 0 : std::pow(x[i], exponent);
}

// exp2(e·log2 x), where x = 2^k·f with √½ ≤ f < √2. The integer part of e·k is subtracted
// before anything is rounded, so that the error is that of a number below e and not below 127e.
template <> inline void Power<float>::by_exponential(float *x, int64_t n) const {
  const float least = least_, e = static_cast<float>(exponent);
  const float coarse = static_cast<float>(std::nearbyint(exponent * 1024) / 1024);
  const float fine = static_cast<float>(exponent - coarse); // coarse·k is exact
  const float rounder = 12582912;                           // 1.5·2^23 + y has no fraction
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, &x[i], sizeof bits);
    const int32_t k = (bits - 0x3f3504f3) >> 23; // the bits of √½
    bits -= k * (1 << 23);
    float f;
    std::memcpy(&f, &bits, sizeof f);
    const float t = (f - 1) / (f + 1), s = t * t; // log f = 2·artanh t, |t| < 0.172
    const float artanh = t * (1 + s * (1 / 3.f + s * (1 / 5.f + s * (1 / 7.f + s / 9))));
    const float product = coarse * k, whole = (product + rounder) - rounder;
    const float y = (product - whole) + (fine * k + e * 2.88539008f * artanh); // 2/log 2
    const float more = (y + rounder) - rounder, z = 0.693147181f * (y - more);
    const float end = 1 / 24.f + z * (1 / 120.f + z * (1 / 720.f + z / 5040));
    const float fraction = 1 + z * (1 + z * (1 / 2.f + z * (1 / 6.f + z * end)));
    const float power = std::min(std::max(whole + more, -126.f), 127.f);
    const int32_t shifted = (static_cast<int32_t>(power) + 127) << 23;
    float scale;
    std::memcpy(&scale, &shifted, sizeof scale);
    x[i] = x[i] < least ? 0 : fraction * scale;
  }
}
