// One step of LpSGD on whole rows; each row stays in the cache from its first pass to its last.
//
// The letters are those of lpsgd.py; tests/reference has the formulas, slow and literal. A row is
// n contiguous numbers. Once the slope <g, w> of a row is known, its weight serves as scratch space
// until it is written again, so that no other memory is needed. Rows are independent of each other:
// the result does not depend on how threads share them.

#include "power.hpp"

extern "C" struct Options {
  double p;                   // exponent of the sphere
  double eta;                 // step on the sphere
  double momentum;            // μ
  double fresh;               // 1 - dampening: the factor of the gradient in the momentum
  double radius_rate;         // step of log γ
  double max_log_radius_step; // largest change of log γ
  int64_t nesterov, learned, unit; // flags: Nesterov momentum, learn γ, γ is 1
};

namespace {

template <class T> struct Row {
  T *w;
  const T *g;
  T *m, *latent, *radius, *radius_momentum;
  int64_t n;
};

// What the momentum pass computes about a row.
template <class T> struct GradientStats {
  T slope; // <g, w> = ∂L/∂log γ
  T max_g; // max |g|
  T max_d; // max |d|

  // A row without a gradient stays: the step is normalized, so what is left of an old momentum
  // would move it forever.
  bool live() const { return max_g > 0 && max_d > 0; }
};

// m ← μm + (1-δ)h ;  w ← d = h + μm or m, for part of a row. h is g, or what the rule makes of it.
template <class T>
void update_momentum(const Row<T> &row, int64_t at, int64_t n, const T *h, const Options &o,
                     GradientStats<T> &stats) {
  const T mu = static_cast<T>(o.momentum), fresh = static_cast<T>(o.fresh);
  const T own = o.nesterov ? T(1) : T(0), kept = o.nesterov ? mu : T(1);
  T slope = 0, max_g = stats.max_g, max_d = stats.max_d;
  T *w = row.w + at, *m = row.m + at;
  const T *g = row.g + at;
#pragma omp simd reduction(+ : slope) reduction(max : max_g, max_d)
  for (int64_t i = 0; i < n; ++i) {
    slope += g[i] * w[i];
    max_g = std::max(max_g, std::abs(g[i]));
    m[i] = mu * m[i] + fresh * h[i];
    w[i] = own * h[i] + kept * m[i];
    max_d = std::max(max_d, std::abs(w[i]));
  }
  stats = {stats.slope + slope, max_g, max_d};
}

// 1/max|d|, after d was scaled up where its inverse would overflow.
template <class T> T inverse(const Row<T> &row, GradientStats<T> &stats) {
  if (stats.max_d < std::numeric_limits<T>::min()) {
    const T up = static_cast<T>(18446744073709551616.0); // 2^64
    for (int64_t i = 0; i < row.n; ++i)
      row.w[i] *= up;
    stats.max_d *= up;
  }
  return 1 / stats.max_d;
}

// γ ← γ·exp(-rate·change), where the change has momentum too.
template <class T>
void train_radius(const Row<T> &row, const GradientStats<T> &stats, const Options &o) {
  if (!o.learned)
    return;
  const T mu = static_cast<T>(o.momentum), fresh = static_cast<T>(o.fresh);
  const T m = *row.radius_momentum = mu * *row.radius_momentum + fresh * stats.slope;
  const double change = o.nesterov ? stats.slope + mu * m : m;
  const double bound = o.max_log_radius_step;
  if (stats.max_g > 0)
    *row.radius *=
        static_cast<T>(std::exp(std::max(-bound, std::min(bound, -o.radius_rate * change))));
}

// latent ← shrink·latent ;  w ← sign(latent)·scale·w, where w holds magnitudes. Only a mask makes
// a weight zero.
template <class T> void write_weights(const Row<T> &row, T shrink, T scale) {
  const T tiny = std::numeric_limits<T>::min();
  T *w = row.w, *latent = row.latent;
#pragma omp simd
  for (int64_t i = 0; i < row.n; ++i) {
    latent[i] *= shrink;
    const T magnitude = std::max(w[i] * scale, tiny);
    w[i] = latent[i] == 0 ? T(0) : std::copysign(magnitude, latent[i]);
  }
}

// The dual rule, p > 1: |v|^a serves both Σ|v|^q = Σ|v||v|^a and the weight.
template <class T> class Dual {
public:
  explicit Dual(const Options &o) : o_(o), a_(1 / (o.p - 1)), q_(1 / (o.p - 1) + 1) {}

  void operator()(const Row<T> &row) const {
    GradientStats<T> stats{};
    update_momentum(row, 0, row.n, row.g, o_, stats);
    const bool live = stats.live();
    T eta = 0, step = 0;
    if (live) {
      const T inv = inverse(row, stats);
      eta = static_cast<T>(o_.eta);
      step = inv * static_cast<T>(o_.eta * std::pow(power_sum(row, inv), -1 / q_.exponent));
    }
    double total = move(row, 1 - eta, step);
    if (!live || !(total > 0))
      total = 1;
    train_radius(row, stats, o_);
    write_weights(row, static_cast<T>(std::pow(total, -1 / q_.exponent)),
                  static_cast<T>(*row.radius * std::pow(total, -1 / o_.p)));
  }

  double latent_exponent() const { return o_.p - 1; }

private:
  Options o_;
  Power<T> a_, q_;

  // Σ|inv·d|^q
  double power_sum(const Row<T> &row, T inv) const {
    double sum = 0;
    T block[BLOCK];
    for (int64_t at = 0; at < row.n; at += BLOCK) {
      const int64_t n = std::min(BLOCK, row.n - at);
      const T *d = row.w + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        block[i] = std::abs(inv * d[i]);
      q_(block, n);
      T part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = 0; i < n; ++i)
        part += block[i];
      sum += part;
    }
    return sum;
  }

  // v ← keep·v - step·d ;  w ← |v|^a ;  Σ|v|^q
  double move(const Row<T> &row, T keep, T step) const {
    double sum = 0;
    for (int64_t at = 0; at < row.n; at += BLOCK) {
      const int64_t n = std::min(BLOCK, row.n - at);
      T *v = row.latent + at, *w = row.w + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        v[i] = keep * v[i] - step * w[i];
        w[i] = std::abs(v[i]);
      }
      a_(w, n);
      T part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = 0; i < n; ++i)
        part += std::abs(v[i]) * w[i];
      sum += part;
    }
    return sum;
  }
};

// The signed-power rule, p ≤ 1: a great circle seen through w = γ sign(u)|u|^(2/p).
template <class T> class SignedPower {
public:
  explicit SignedPower(const Options &o) : o_(o), outer_(2 / o.p), inner_(2 / o.p - 1) {}

  void operator()(const Row<T> &row) const {
    GradientStats<T> stats{};
    scale_gradient(row, stats);
    double step = 0, norm = 1;
    if (stats.live())
      step = tangent(row, inverse(row, stats));
    if (step > 0)
      norm = std::sqrt(move(row, static_cast<T>(step)));
    train_radius(row, stats, o_);
    magnitudes(row, static_cast<T>(1 / norm));
    write_weights(row, T(1), *row.radius);
  }

  double latent_exponent() const { return o_.p / 2; }

private:
  Options o_;
  Power<T> outer_, inner_;

  // h = γ g (2/p)|u|^(2/p-1), and its momentum.
  void scale_gradient(const Row<T> &row, GradientStats<T> &stats) const {
    const T factor = *row.radius * static_cast<T>(outer_.exponent);
    T h[BLOCK];
    for (int64_t at = 0; at < row.n; at += BLOCK) {
      const int64_t n = std::min(BLOCK, row.n - at);
      const T *u = row.latent + at, *g = row.g + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        h[i] = std::abs(u[i]);
      inner_(h, n);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        h[i] *= factor * g[i];
      update_momentum(row, at, n, h, o_, stats);
    }
  }

  // w ← inv·d - <inv·d, u>u ;  η/‖w‖, or 0 where only rounding noise is left of d.
  double tangent(const Row<T> &row, T inv) const {
    T before = 0, along = 0, after = 0;
    T *w = row.w;
    const T *u = row.latent;
#pragma omp simd reduction(+ : before, along)
    for (int64_t i = 0; i < row.n; ++i) {
      const T d = inv * w[i];
      before += d * d;
      along += d * u[i];
    }
#pragma omp simd reduction(+ : after)
    for (int64_t i = 0; i < row.n; ++i) {
      w[i] = inv * w[i] - along * u[i];
      after += w[i] * w[i];
    }
    const T noise = 8 * std::numeric_limits<T>::epsilon();
    return after > noise * noise * before ? o_.eta / std::sqrt(after) : 0;
  }

  // u ← u - step·w ;  ‖u‖²
  double move(const Row<T> &row, T step) const {
    T sum = 0;
    T *u = row.latent;
    const T *w = row.w;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < row.n; ++i) {
      u[i] -= step * w[i];
      sum += u[i] * u[i];
    }
    return sum;
  }

  // u ← shrink·u ;  w ← |u|^(2/p)
  void magnitudes(const Row<T> &row, T shrink) const {
    for (int64_t at = 0; at < row.n; at += BLOCK) {
      const int64_t n = std::min(BLOCK, row.n - at);
      T *u = row.latent + at, *w = row.w + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        u[i] *= shrink;
        w[i] = std::abs(u[i]);
      }
      outer_(w, n);
    }
  }
};

// A row of zeros has no direction; once it has a gradient, it takes that of an ordinary step.
template <class T> void revive(const Row<T> &row, double exponent, const Options &o) {
  double largest = 0, sum = 0;
  for (int64_t i = 0; i < row.n; ++i)
    largest = std::max(largest, std::abs(o.eta * row.g[i]));
  if (!(largest > 0))
    return;
  for (int64_t i = 0; i < row.n; ++i)
    sum += std::pow(std::abs(o.eta * row.g[i]) / largest, o.p);
  const double radius = largest * std::pow(sum, 1 / o.p);
  if (!(static_cast<T>(radius) > 0))
    return;
  for (int64_t i = 0; i < row.n; ++i) {
    const double x = -o.eta * row.g[i];
    row.latent[i] = static_cast<T>(std::copysign(std::pow(std::abs(x) / radius, exponent), x));
  }
  *row.radius = o.unit ? T(1) : static_cast<T>(radius);
}

template <class T, class Rule>
void step_rows(const Row<T> &start, int64_t first, int64_t last, const Options &o) {
  const Rule rule(o);
  for (int64_t r = first; r < last; ++r) {
    const int64_t at = r * start.n;
    const Row<T> row{start.w + at, start.g + at, start.m + at, start.latent + at,
                     start.radius + r, start.radius_momentum + r, start.n};
    if (*row.radius == 0)
      revive(row, rule.latent_exponent(), o);
    rule(row);
  }
}

template <class T>
void step(T *w, const T *g, T *m, T *latent, T *radius, T *radius_momentum, int64_t n,
          int64_t first, int64_t last, const Options &o) {
  const Row<T> start{w, g, m, latent, radius, radius_momentum, n};
  if (o.p > 1)
    step_rows<T, Dual<T>>(start, first, last, o);
  else
    step_rows<T, SignedPower<T>>(start, first, last, o);
}

} // namespace

// Steps rows first to last - 1 of a weight: its values, gradient, momentum and latent, and for each
// row a radius and the momentum of the radius (not touched unless radii are learned).
extern "C" void lpsgd_float32(float *w, const float *g, float *m, float *latent, float *radius,
                              float *radius_momentum, int64_t n, int64_t first, int64_t last,
                              const Options *o) {
  step(w, g, m, latent, radius, radius_momentum, n, first, last, *o);
}

extern "C" void lpsgd_float64(double *w, const double *g, double *m, double *latent, double *radius,
                              double *radius_momentum, int64_t n, int64_t first, int64_t last,
                              const Options *o) {
  step(w, g, m, latent, radius, radius_momentum, n, first, last, *o);
}
