// Small kernels, right and wrong, that say what the simulator must report; tests/test_simulator.py
// has the list. Compiled with -fsanitize=thread.

#include "device.h"

#include "simulator.h"

using namespace simulator;

namespace {
constexpr unsigned ALL = 0xffffffffu;
int* values;   // [count], not initialised
int* counter;  // one, zero
}  // namespace

// Defines a kernel, and the function of its name that launches it with 256 bytes of shared memory.
#define KERNEL(name, blocks, threads)                                                            \
  static void name##_kernel(int* values, int* counter, int* shared, int t, int lane);            \
  extern "C" void name(int* memory, int count, int* zero) {                                      \
    add_region(memory, count * 4, 0, "values");                                                  \
    add_region(zero, 4, INITIALISED, "counter");                                                 \
    values = memory;                                                                             \
    counter = zero;                                                                              \
    launch(blocks, threads, 256, [] {                                                            \
      const int t = threadIdx.x;                                                                 \
      name##_kernel(values, counter, reinterpret_cast<int*>(sim_shared()), t, t % WARP);         \
    });                                                                                          \
  }                                                                                              \
  static void name##_kernel([[maybe_unused]] int* values, [[maybe_unused]] int* counter,         \
                            [[maybe_unused]] int* shared, [[maybe_unused]] int t,                \
                            [[maybe_unused]] int lane)

// Races.
KERNEL(barrier, 2, 64) {
  shared[t] = t;
  __syncthreads();
  values[64 * blockIdx.x + t] = shared[t ^ 32];
}
KERNEL(no_barrier, 2, 64) {
  shared[t] = t;
  values[64 * blockIdx.x + t] = shared[t ^ 32];
}
KERNEL(barrier_of_lanes, 1, 32) {
  shared[t] = t;
  __syncwarp();
  values[t] = shared[t ^ 1];
}
KERNEL(shuffle_as_barrier, 1, 32) {
  shared[t] = t;
  const int other = __shfl_xor_sync(ALL, t, 1);
  values[t] = shared[other];
}
KERNEL(barrier_of_half, 1, 32) {
  if (lane >= 16) return;
  shared[t] = t;
  __syncwarp(0xffffu);
  values[t] = shared[t ^ 1];
}
KERNEL(barrier_of_the_wrong_half, 1, 32) {
  shared[t] = t;
  __syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);
  values[t] = shared[t ^ 16];
}
KERNEL(barrier_of_one_block, 2, 32) {
  values[t] = t;
  __syncthreads();
}

// A message from block 0 to block 1.
template <class Send, class Receive>
static void message(int* values, Send send, Receive receive) {
  if (threadIdx.x > 0) return;
  if (blockIdx.x == 0) {
    values[0] = 7;
    send();
  } else {
    receive();
    values[1] = values[0];
  }
}
KERNEL(message_with_fences, 2, 32) {
  message(values, [&] { __threadfence(); atomicAdd(counter, 1); },
          [&] { while (!peek(counter)) __nanosleep(32); __threadfence(); });
}
KERNEL(message_by_acquire, 2, 32) {
  message(values, [&] { add_release(counter, 1); }, [&] { while (!load_acquire(counter)) {} });
}
KERNEL(message_without_release, 2, 32) {
  message(values, [&] { atomicAdd(counter, 1); }, [&] { while (!load_acquire(counter)) {} });
}
KERNEL(message_without_acquire, 2, 32) {
  message(values, [&] { add_release(counter, 1); }, [&] { while (!peek(counter)) {} });
}

// Barriers and exchanges that do not meet.
KERNEL(barriers_in_branches, 1, 64) {
  if (t < 32) {
    values[t] = t;
    __syncthreads();
  } else {
    __syncthreads();
    values[t] = t;
  }
}
KERNEL(barrier_missed, 1, 64) {
  if (t > 0) __syncthreads();
}
KERNEL(lane_missing, 1, 32) {
  if (lane != 5) values[t] = __shfl_xor_sync(ALL, t, 1);
}
KERNEL(lane_at_another_exchange, 1, 32) {
  values[t] = lane < 16 ? __any_sync(ALL, t) : __all_sync(ALL, t);
}
KERNEL(lane_waits_elsewhere, 1, 64) {
  if (t == 40) __syncthreads();
  else if (t >= 32) values[t] = __ballot_sync(ALL, t);
  else __syncthreads();
}
KERNEL(lane_not_in_its_mask, 1, 32) {
  values[t] = __ballot_sync(0xffffu, t);
}
KERNEL(lane_outside_the_mask, 1, 32) {
  if (lane < 16) values[t] = __shfl_sync(0xffffu, t, 20);
}
KERNEL(looks_in_vain, 1, 32) {
  while (!peek(counter)) {}
}
KERNEL(never_ends, 1, 32) {
  for (int k = 0; peek(counter) == 0; ++k) values[t] = k;
}

// Memory.
KERNEL(never_written, 1, 32) {
  if (t == 0) values[1] = values[0];
}
KERNEL(reads_over_the_end, 1, 32) {
  shared[t] = t == 0 ? values[1 << 20] : 0;
}
KERNEL(writes_before_the_start, 1, 32) {
  if (t == 0) values[-1] = 0;
}
KERNEL(over_the_end_of_shared_memory, 2, 64) {
  shared[t + 1] = t;
}
KERNEL(misaligned, 1, 32) {
  if (t == 0) *reinterpret_cast<int4*>(values + 1) = make_int4(1, 2, 3, 4);
}
KERNEL(bytes, 1, 32) {
  reinterpret_cast<unsigned char*>(values)[t] = 1;
}

// Results of every exchange: values[32 * row + lane].
KERNEL(exchanges, 1, 32) {
  const int x = (7 * lane + 3) % 32 - 16;
  int row = 0;
  const auto put = [&](int value) { values[32 * row++ + lane] = value; };
  put(x);
  put(__shfl_sync(ALL, x, lane / 2));
  put(__shfl_sync(ALL, x, 3, 8));
  put(__shfl_up_sync(ALL, x, 3));
  put(__shfl_up_sync(ALL, x, 3, 8));
  put(__shfl_down_sync(ALL, x, 3));
  put(__shfl_down_sync(ALL, x, 3, 8));
  put(__shfl_xor_sync(ALL, x, 5));
  put(static_cast<int>(__shfl_xor_sync(ALL, static_cast<double>(x), 4, 8)));
  put(__ballot_sync(ALL, x > 0));
  put(__any_sync(ALL, x == 15) + 2 * __all_sync(ALL, x == 15));
  put(__reduce_add_sync(ALL, x));
  put(__reduce_min_sync(ALL, x));
  put(__reduce_max_sync(ALL, x));
  put(__reduce_min_sync(ALL, static_cast<unsigned>(x)));
  put(__reduce_max_sync(ALL, static_cast<unsigned>(x)));
  put(__syncthreads_count(x > 0) + 100 * __syncthreads_or(x == 15) + 1000 * __syncthreads_and(x));
  put(lane < 16 ? __reduce_add_sync(0xffffu, x) : __reduce_add_sync(0xffff0000u, x));
  put(__popc(x) + 100 * __clz(x) + 10000 * __ffs(x));
}

// What the atomics of all lanes leave in values, which lane 0 writes first.
KERNEL(atomics, 1, 32) {
  auto* wide = reinterpret_cast<unsigned long long*>(values + 8);
  auto* real = reinterpret_cast<float*>(values + 12);
  if (lane == 0) {
    for (int k = 0; k < 6; ++k) values[k] = k == 3 ? -1 : 0;
    wide[0] = 1ull << 63;
    real[0] = 0.5f;
  }
  __syncwarp();
  atomicAdd(&values[0], lane);
  atomicMin(&values[1], 5 - lane);
  atomicMax(&values[2], lane - 5);
  atomicAnd(&values[3], ~(1 << lane / 2));
  atomicOr(&values[4], 1 << lane / 2);
  int seen = peek(&values[5]);
  for (int before; (before = atomicCAS(&values[5], seen, seen + 2)) != seen; seen = before) {}
  atomicMin(&wide[0], static_cast<unsigned long long>(lane) << 40 | 1);
  atomicAdd(&real[0], 0.25f);
}
