// S, and what follows from it: the only file of the kernel that knows which function of D it is.
//
//   F = J^2 - D / kappa^2,   J^2 = exp(-2 alpha D),   S = sqrt(max(F, 0) + e^2) - e,   W = S^power
//
// To the others F is what is not above 0 where a pair does not lock, and rho^2 the D from which on none does. What
// F takes of a receiver and of a head is made once for many pairs: its row term and its head term.
#pragma once
#include "problem.h"

static inline float row_term_of(float kappa) { return 1 / (kappa * kappa); }

// J^2 = 2^(head term D).
static inline float head_term_of(float alpha) {
    constexpr float RATE = -2.885390081777927f;  // -2 log2(e)
    return alpha * RATE;
}

// From the sums over a receiver's pairs, or a head's, of what `through_margin` says.
static inline float coupling_gradient(float sum, float kappa) { return 2 * sum / kappa / kappa / kappa; }
static inline double bandwidth_gradient(double sum) { return -2 * sum; }

// rho^2 = W0(2 alpha kappa^2) / (2 alpha): Newton's iteration for w e^w = c, from above.
static inline double locking_radius_square(double kappa, double alpha) {
    const double twice = 2 * alpha, c = twice * kappa * kappa;
    double w = __builtin_log1p(c);
    for (int k = 0; k < 50; ++k) w -= (w - c * __builtin_exp(-w)) / (1 + w);
    const double most = kappa * kappa;
    return most < w / twice ? most : w / twice;
}

#ifdef SYNCATTN_ISA  // the rest is for the instances
#include "simd.h"

namespace SYNCATTN_ISA {

// An upper bound of rho^2, a hundred-thousandth too large: the same iteration, which falls monotonically from any start
// above W0, and log(1 + c) is above.
INLINE vf radius_bound(vf row_term, float alpha) {
    const float twice = 2 * alpha;
    const vf c = twice / row_term, one_more = c + 1.0f;
    const vi exponent = ((vi)one_more >> 23) - 126;  // 1 + c < 2^exponent
    vf w = __builtin_convertvector(exponent, vf) * 0.69314724f;
    for (int k = 0; k < 9; ++k) {
        const vf power = exp2_of(larger(splat(-126.0f), w * -1.44269504f));
        w -= (w - c * power) / (w + 1.0f);
    }
    return smaller(1.0f / row_term, w * 1.00001f / twice) * 1.00001f;  // rho <= kappa; NaN stays
}

// F and J^2 at squared detuning x counted from the frame.
INLINE vf margin_of(vf x, float head_term, vf row_term, vf* decay_square) {
    const vf y = larger(splat(-126.0f), x * head_term);  // far pairs would be slow denormal numbers
    *decay_square = exp2_of(y);
    return *decay_square - x * row_term;
}

// From dL/dF of a pair: dL/dD, and what it adds to the sums for kappa and for alpha.
struct Through {
    vf detuning, coupling, bandwidth;
};
INLINE Through through_margin(vf gradient, vf x, vf decay_square, vf row_term, float alpha) {
    const vf scaled = gradient * x;  // x is FAR_DETUNING where a pair may not attend, and the gradient 0
    return {gradient * (decay_square * (-2 * alpha) - row_term), scaled, scaled * decay_square};
}

// Which function of F the strength is.
enum Form { SQUARED, PLAIN, PLAIN_EDGE, SQUARED_EDGE };

// run(form) with the problem's, a constant for templates: decltype(form)::value.
template <Form FORM>
struct Constant {
    static constexpr Form value = FORM;
};
template <typename Run>
INLINE void with_form(const SyncattnProblem& p, const Run& run) {
    if (p.edge > 0) return p.power == 2 ? run(Constant<SQUARED_EDGE>{}) : run(Constant<PLAIN_EDGE>{});
    return p.power == 2 ? run(Constant<SQUARED>{}) : run(Constant<PLAIN>{});
}

// W from F; exactly 0 where not locked.
template <int FORM>
INLINE vf strength_of(vf margin, float edge) {
    const vf positive = larger(vf{}, margin);  // NaN stays: it must show
    if constexpr (FORM == SQUARED) return positive;
    if constexpr (FORM == PLAIN) return square_root(positive);
    const vf sync = square_root(positive + edge * edge) - edge;
    const vf strength = FORM == SQUARED_EDGE ? sync * sync : sync;
    return positive == 0.0f ? vf{} : strength;
}

// Of a token with itself: F = 1 at D = 0.
template <int FORM>
INLINE float own_strength(const SyncattnProblem& p) {
    return p.self_coupling ? strength_of<FORM>(vf{} + 1.0f, p.edge)[0] : 0;
}

// dL/dF from dL/dW; exactly 0 where not locked.
template <int FORM>
INLINE vf through_strength(vf gradient, vf margin, float edge) {
    if constexpr (FORM == PLAIN) gradient *= 0.5f / square_root(larger(vf{}, margin));
    if constexpr (FORM == PLAIN_EDGE || FORM == SQUARED_EDGE) {
        const vf root = square_root(larger(vf{}, margin) + edge * edge);
        gradient *= (FORM == SQUARED_EDGE ? root - edge : vf{} + 0.5f) / root;
    }
    return margin <= 0.0f ? vf{} : gradient;
}

}  // namespace SYNCATTN_ISA
#endif
