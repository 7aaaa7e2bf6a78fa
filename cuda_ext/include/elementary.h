// Elementary functions over `float` and `Pack`, with the same results on every device. The polynomials are our own
// minimax fits (weighted least squares on Chebyshev nodes, in extended precision); the largest error is stated with
// each.
#pragma once

#include "pack.h"

namespace S3D_VARIANT {

// value * 2^power for an integral power in [-126, 127]; returns NaN for NaN.
template <class F>
S3D_HD F scale_by_power_of_two(F value, F power) {
    const typename Lanes<F>::Int whole = to_int(select(power == power, power, splat<F>(0.0f)));
    return value * from_bits(to_unsigned(whole + 127) << 23);
}

// exp(x) = (1 + fraction) * 2^exponent.
template <class F>
struct Exponential {
    F fraction, exponent;
};

template <class F>
S3D_HD Exponential<F> split_exponential(F x) {
    x = clamp(x, -87.33f, 88.3f);
    const F exponent = round_down(multiply_add(x, splat<F>(1.44269504f), splat<F>(0.5f)));
    // ln 2 is split in two parts. The first has few bits, so its multiples are exact.
    F r = multiply_add(exponent, splat<F>(-0.693359375f), x);
    r = multiply_add(exponent, splat<F>(2.12194440e-4f), r);
    F p = splat<F>(1.9919175e-4f);
    p = multiply_add(p, r, splat<F>(1.39469609e-3f));
    p = multiply_add(p, r, splat<F>(8.3332631e-3f));
    p = multiply_add(p, r, splat<F>(4.16662586e-2f));
    p = multiply_add(p, r, splat<F>(0.166666669f));
    p = multiply_add(p, r, splat<F>(0.500000008f));
    return {multiply_add(p, r * r, r), exponent};
}

// exp(x), relative error below 2e-7. Clamped to the smallest normal number below x = -87.3.
template <class F>
S3D_HD F exponential(F x) {
    const Exponential<F> e = split_exponential(x);
    return scale_by_power_of_two(e.fraction + 1.0f, e.exponent);
}

// 1 - exp(-x) without cancellation near zero, relative error below 3e-7.
template <class F>
S3D_HD F one_minus_exp(F x) {
    const Exponential<F> e = split_exponential(-x);
    return (1.0f - scale_by_power_of_two(splat<F>(1.0f), e.exponent)) - scale_by_power_of_two(e.fraction, e.exponent);
}

// log(1 + x) for x >= 0, relative error below 3e-7.
template <class F>
S3D_HD F log_one_plus(F x) {
    using UInt = typename Lanes<F>::UInt;
    using Int = typename Lanes<F>::Int;
    const F whole = 1.0f + x;
    // Rounding error of the sum above.
    const F remainder = (x - (whole - 1.0f)) / whole;
    // whole = m * 2^k with m in [sqrt(1/2), sqrt(2)).
    const UInt shifted = to_bits(whole) - 0x3f3504f3u;
    const Int power = to_signed(shifted) >> 23;
    const F m = from_bits((shifted & 0x007fffffu) + 0x3f3504f3u);
    const F t = (m - 1.0f) / (m + 1.0f);
    const F q = t * t;
    F p = splat<F>(0.2995460106f);
    p = multiply_add(p, q, splat<F>(0.3997371167f));
    p = multiply_add(p, q, splat<F>(0.6666682571f));
    p = multiply_add(p, q, splat<F>(2.0f));
    const F exponent = to_float(power);
    F result = multiply_add(exponent, splat<F>(-2.12194440e-4f), remainder);
    result = multiply_add(t, p, result);
    result = multiply_add(exponent, splat<F>(0.693359375f), result);
    return select(x == x, result, x);
}

template <class F>
S3D_HD F inverse_sinh(F x) {
    const F a = absolute(x);
    const F root = square_root(multiply_add(a, a, splat<F>(1.0f)));
    const F result = log_one_plus(a + a * a / (1.0f + root));
    return select(x < splat<F>(0.0f), -result, result);
}

template <class F>
S3D_HD F sigmoid(F x) {
    return reciprocal(1.0f + exponential(-x));
}

template <class F>
S3D_HD F silu(F x) {
    return x * reciprocal(1.0f + exponential(-x));
}

template <class F>
struct Activation {
    F value, derivative;
};

// SiLU and its derivative s + x s (1 - s), where s is the sigmoid of x.
template <class F>
S3D_HD Activation<F> silu_with_derivative(F x) {
    const F s = sigmoid(x);
    const F value = x * s;
    return {value, s + value * (1.0f - s)};
}

// log(1 + exp(x)).
template <class F>
S3D_HD F softplus(F x) {
    return maximum(x, splat<F>(0.0f)) + log_one_plus(exponential(-absolute(x)));
}

template <class F>
struct SineCosine {
    F sine, cosine;
};

// sin(pi x) and cos(pi x), absolute error below 2e-7.
template <class F>
S3D_HD SineCosine<F> sine_cosine_pi(F x) {
    const F half_turns = round_down(x + 0.5f);
    const F r = x - half_turns;
    const F q = r * r;
    F s = splat<F>(-0.0070284668f);
    s = multiply_add(s, q, splat<F>(0.0820504521f));
    s = multiply_add(s, q, splat<F>(-0.5992522088f));
    s = multiply_add(s, q, splat<F>(2.5501633199f));
    s = multiply_add(s, q, splat<F>(-5.1677127647f));
    s = multiply_add(s, q, splat<F>(3.1415926535f));
    F c = splat<F>(0.0018400240f);
    c = multiply_add(c, q, splat<F>(-0.0257763423f));
    c = multiply_add(c, q, splat<F>(0.2353254438f));
    c = multiply_add(c, q, splat<F>(-1.3352623162f));
    c = multiply_add(c, q, splat<F>(4.0587121076f));
    c = multiply_add(c, q, splat<F>(-4.9348022003f));
    c = multiply_add(c, q, splat<F>(1.0f));
    // An odd number of half turns flips both signs.
    const F half = half_turns * 0.5f;
    const F sign = 1.0f - 4.0f * (half - round_down(half));
    return {sign * r * s, sign * c};
}

}  // namespace S3D_VARIANT
