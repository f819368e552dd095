// What a CUDA kernel may use in the simulator; include it before the .cu file.
//
// Such a unit is compiled with -fsanitize=thread and linked without: before every access to memory
// that another thread can see the compiler then calls __tsan_read4(address) or the like, and
// memory.cpp, not the sanitizer's library, answers. All other operations call the functions below.
// They are inlined, so that the return address of what they call is a place in the kernel.

#pragma once
#include <type_traits>

#include "../cuda_host.h"

#define WARP 32
#define DYNAMIC_SHARED(name) unsigned char* name = sim_shared()
#define __syncthreads sim_syncthreads
#define __threadfence sim_threadfence
#define __nanosleep sim_nanosleep  // libc has a __nanosleep of its own

struct sim_index {
  unsigned x, y, z;
};
extern sim_index threadIdx, blockIdx, blockDim, gridDim;

// Operations at which threads meet, with `detail` (a lane, distance or bit mask) where one is said.
enum SimMeeting {
  SIM_SYNC,
  SIM_SHUFFLE,       // detail: lane
  SIM_SHUFFLE_UP,    // detail: distance
  SIM_SHUFFLE_DOWN,  // detail: distance
  SIM_SHUFFLE_XOR,   // detail: bits
  SIM_BALLOT,
  SIM_ANY,
  SIM_ALL,
  SIM_COUNT,
  SIM_REDUCE_ADD,
  SIM_REDUCE_MIN,           // signed
  SIM_REDUCE_MAX,           // signed
  SIM_REDUCE_MIN_UNSIGNED,
  SIM_REDUCE_MAX_UNSIGNED,
};
enum SimAtomic { SIM_ADD, SIM_MIN, SIM_MAX, SIM_AND, SIM_OR, SIM_EXCHANGE, SIM_SWAP_IF_EQUAL };
enum SimType { SIM_INT, SIM_UNSIGNED, SIM_LONG, SIM_UNSIGNED_LONG, SIM_FLOAT, SIM_DOUBLE };
enum SimOrder { SIM_RELAXED = 0, SIM_ACQUIRE = 1, SIM_RELEASE = 2 };

extern "C" {
unsigned char* sim_shared();
void sim_syncthreads();
void sim_threadfence();
void sim_nanosleep(unsigned);
// All threads of the block; the result is the operation's on the predicates.
int sim_block_vote(int meeting, int predicate);
// The lanes in `mask`; values and results as bits.
uint64_t sim_warp(int meeting, unsigned mask, uint64_t bits, int detail, int width);
// Returns the old bits.
uint64_t sim_atomic(int atomic, int type, void* place, uint64_t bits, uint64_t expected, int order);
uint64_t sim_load(const void* place, int bytes, int order);
}

template <class T>
__forceinline__ uint64_t sim_bits(T value) {
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(uint64_t, value);
  else return __builtin_bit_cast(uint32_t, value);
}
template <class T>
__forceinline__ T sim_value(uint64_t bits) {
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(T, bits);
  else return __builtin_bit_cast(T, static_cast<uint32_t>(bits));
}
template <class T>
constexpr SimType sim_type() {
  if (std::is_floating_point_v<T>) return sizeof(T) == 8 ? SIM_DOUBLE : SIM_FLOAT;
  if (std::is_signed_v<T>) return sizeof(T) == 8 ? SIM_LONG : SIM_INT;
  return sizeof(T) == 8 ? SIM_UNSIGNED_LONG : SIM_UNSIGNED;
}

// Warps.
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
  sim_warp(SIM_SYNC, mask, 0, 0, WARP);
}
#define SIM_SHUFFLE_FUNCTION(name, meeting)                                        \
  template <class T>                                                               \
  __forceinline__ T name(unsigned mask, T value, int detail, int width = WARP) {   \
    return sim_value<T>(sim_warp(meeting, mask, sim_bits(value), detail, width));  \
  }
SIM_SHUFFLE_FUNCTION(__shfl_sync, SIM_SHUFFLE)
SIM_SHUFFLE_FUNCTION(__shfl_up_sync, SIM_SHUFFLE_UP)
SIM_SHUFFLE_FUNCTION(__shfl_down_sync, SIM_SHUFFLE_DOWN)
SIM_SHUFFLE_FUNCTION(__shfl_xor_sync, SIM_SHUFFLE_XOR)
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(sim_warp(SIM_BALLOT, mask, predicate != 0, 0, WARP));
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(sim_warp(SIM_ANY, mask, predicate != 0, 0, WARP));
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(sim_warp(SIM_ALL, mask, predicate != 0, 0, WARP));
}
template <class T>
__forceinline__ T __reduce_add_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4, "the hardware reduces 32 bits");
  return sim_value<T>(sim_warp(SIM_REDUCE_ADD, mask, sim_bits(value), 0, WARP));
}
template <class T>
__forceinline__ T __reduce_min_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4, "the hardware reduces 32 bits");
  constexpr SimMeeting least = std::is_signed_v<T> ? SIM_REDUCE_MIN : SIM_REDUCE_MIN_UNSIGNED;
  return sim_value<T>(sim_warp(least, mask, sim_bits(value), 0, WARP));
}
template <class T>
__forceinline__ T __reduce_max_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4, "the hardware reduces 32 bits");
  constexpr SimMeeting largest = std::is_signed_v<T> ? SIM_REDUCE_MAX : SIM_REDUCE_MAX_UNSIGNED;
  return sim_value<T>(sim_warp(largest, mask, sim_bits(value), 0, WARP));
}

// Blocks.
__forceinline__ int __syncthreads_or(int predicate) { return sim_block_vote(SIM_ANY, predicate); }
__forceinline__ int __syncthreads_and(int predicate) { return sim_block_vote(SIM_ALL, predicate); }
__forceinline__ int __syncthreads_count(int predicate) {
  return sim_block_vote(SIM_COUNT, predicate);
}

// Atomics, relaxed like CUDA's.
#define SIM_ATOMIC_FUNCTION(name, atomic)                                                     \
  template <class T, class U>                                                                 \
  __forceinline__ T name(T* place, U value) {                                                 \
    const uint64_t bits = sim_bits(static_cast<T>(value));                                    \
    return sim_value<T>(sim_atomic(atomic, sim_type<T>(), place, bits, 0, SIM_RELAXED));      \
  }
SIM_ATOMIC_FUNCTION(atomicAdd, SIM_ADD)
SIM_ATOMIC_FUNCTION(atomicMin, SIM_MIN)
SIM_ATOMIC_FUNCTION(atomicMax, SIM_MAX)
SIM_ATOMIC_FUNCTION(atomicAnd, SIM_AND)
SIM_ATOMIC_FUNCTION(atomicOr, SIM_OR)
SIM_ATOMIC_FUNCTION(atomicExch, SIM_EXCHANGE)
template <class T, class U, class V>
__forceinline__ T atomicCAS(T* place, U expected, V value) {
  return sim_value<T>(sim_atomic(SIM_SWAP_IF_EQUAL, sim_type<T>(), place,
                                 sim_bits(static_cast<T>(value)),
                                 sim_bits(static_cast<T>(expected)), SIM_RELAXED));
}

// What the kernels define for a device themselves (teams.cuh).
template <class T>
__forceinline__ T peek(const T* place) {
  return sim_value<T>(sim_load(place, sizeof(T), SIM_RELAXED));
}
template <class T>
__forceinline__ T load_acquire(const T* place) {
  return sim_value<T>(sim_load(place, sizeof(T), SIM_ACQUIRE));
}
template <class T, class U>
__forceinline__ T add_release(T* place, U value) {
  const uint64_t bits = sim_bits(static_cast<T>(value));
  return sim_value<T>(sim_atomic(SIM_ADD, sim_type<T>(), place, bits, 0, SIM_RELEASE));
}
