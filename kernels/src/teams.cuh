// Who works on a problem.
//
// A team solves one problem: a warp, a thread block, or several blocks of a cooperative grid. All
// device code is written as strided loops between `team.sync()`; a *worker* is the team's unit
// that reads a row together, LANES threads of one warp. What a loop computes never depends on the
// number of threads: sums, minima and maxima are of integers, ties are broken by position. So a
// host compiler can build the same text with one thread (tests/auction_host.h).

#pragma once

#ifndef GPU_ALIGN_HOST
#define WARP 32
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// A value that other threads may be changing.
template <class T>
__device__ __forceinline__ T peek(const T* place) {
  return *static_cast<const volatile T*>(place);
}

// What the threads of a grid tell each other about their meetings. An acquire also drops what the
// multiprocessor's cache holds of the memory that others have written.
__device__ __forceinline__ void add_release(unsigned long long* place, unsigned long long value) {
  asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(place), "l"(value) : "memory");
}
__device__ __forceinline__ unsigned long long load_acquire(const unsigned long long* place) {
  unsigned long long value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(place) : "memory");
  return value;
}
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int QUARTER = WARP >= 4 ? WARP / 4 : 1;

// A warp, which keeps its problem in registers (auction_warp.cuh); a block holds several of them.
struct WarpTeam {
  int rank, size;
  __device__ WarpTeam() : rank(threadIdx.x % WARP), size(WARP) {}
};

// A block. Rows in shared memory are short, and read by a quarter of a warp.
template <bool OUTSIDE>
struct BlockTeam {
  static constexpr int LANES = OUTSIDE ? WARP : QUARTER;
  static constexpr bool MATRIX_OUTSIDE = OUTSIDE;
  int rank, size;
  __device__ BlockTeam() : rank(threadIdx.x), size(blockDim.x) {}
  __device__ void sync() { __syncthreads(); }
};

// Some neighbouring blocks of a cooperative launch, all of them resident.
struct GridTeam {
  static constexpr int LANES = WARP;
  static constexpr bool MATRIX_OUTSIDE = false;
  int rank, size;
  u64 blocks, *arrivals, expected;  // arrivals only ever counts up
  __device__ GridTeam(int count, u64* counter)
      : rank(blockIdx.x % count * blockDim.x + threadIdx.x),
        size(count * blockDim.x),
        blocks(count),
        arrivals(counter),
        expected(0) {}
  __device__ void sync() {
    __syncthreads();
    if (threadIdx.x == 0) {
      expected += blocks;
      add_release(arrivals, 1);
      while (load_acquire(arrivals) < expected) {
      }
    }
    __syncthreads();
  }
};

// A worker's number, the number of workers, and a thread's place in its worker.
template <class Team>
__device__ __forceinline__ int worker_of(const Team& team) { return team.rank / Team::LANES; }
template <class Team>
__device__ __forceinline__ int workers_of(const Team& team) { return team.size / Team::LANES; }
template <class Team>
__device__ __forceinline__ int lane_of(const Team& team) { return team.rank % Team::LANES; }

struct Lesser {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Greater {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// The mask of a worker's lanes in its warp.
template <int LANES>
__device__ __forceinline__ u32 lanes_mask() {
  constexpr u32 ALL = LANES == 32 ? 0xffffffffu : (1u << (LANES % 32)) - 1;
  return ALL << (threadIdx.x % WARP / LANES * LANES);
}

// The value of the lane whose number differs in bit `k`, within a worker.
template <int LANES, class T>
__device__ __forceinline__ T exchange(T value, int k) {
  return __shfl_xor_sync(lanes_mask<LANES>(), value, k, LANES);
}

// Reduce over the lanes of a worker; every lane gets the result.
template <int LANES, class T, class Op>
__device__ __forceinline__ T reduce(T value, Op op) {
#pragma unroll
  for (int k = LANES / 2; k > 0; k /= 2) value = op(value, exchange<LANES>(value, k));
  return value;
}
