// What CUDA has and a host compiler lacks, whoever runs the threads: included by both stand-ins for
// CUDA, auction_host.h (threads of the host) and simulator/device.h (a checker, thread by thread).

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#define GPU_ALIGN_HOST
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

using std::isnan;
using std::max;
using std::min;

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};
template <class T>
struct alignas(16) Quadruple {
  T x, y, z, w;
};
using int2 = Pair<int>;
using uint2 = Pair<unsigned>;
using float2 = Pair<float>;
using double2 = Pair<double>;
using longlong2 = Pair<long long>;
using ulonglong2 = Pair<unsigned long long>;
using int4 = Quadruple<int>;
using uint4 = Quadruple<unsigned>;
using float4 = Quadruple<float>;

inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
inline double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }

template <class T>
__forceinline__ T __ldg(const T* place) {
  return *place;
}
