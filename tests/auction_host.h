// What the CUDA kernels of kernels/src need of CUDA, for a host compiler: included before them.
//
// A device thread is a std::thread, a warp is HOST_WARP of them. With HOST_WARP 1 and one thread
// the loops of a kernel run one after another; with more the barriers, atomics and shuffles
// below are real, and the thread sanitizer sees every access between two barriers.

#pragma once
#include <pthread.h>
#include <sched.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda_host.h"

#ifndef HOST_WARP
#define HOST_WARP 1
#endif
#define WARP HOST_WARP
#define DYNAMIC_SHARED(name) unsigned char* name = host::current->shared.data()

namespace host {

struct Barrier {
  pthread_barrier_t barrier;
  int parties;
  explicit Barrier(int count) : parties(count) { pthread_barrier_init(&barrier, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier); }
  void wait() {
    if (parties > 1) pthread_barrier_wait(&barrier);
  }
};

struct Block {
  std::vector<unsigned char> shared;
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> segments;  // for each power of two below HOST_WARP
  std::vector<uint64_t> slots;
  int threads;
  Block(int count, size_t bytes) : shared(bytes + 16), all(count), slots(count), threads(count) {
    for (int width = 1; width <= HOST_WARP; width *= 2) {
      for (int k = 0; k < count; ++k) {
        segments.push_back(std::make_unique<Barrier>(k % width == 0 ? std::min(width, count) : 1));
      }
    }
  }
  Barrier& segment(int thread, int width) {
    int level = 0;
    while (1 << level < width) ++level;
    return *segments[level * threads + thread / width * width];
  }
};

struct Index {
  unsigned x;
};
inline thread_local Block* current = nullptr;

}  // namespace host

inline thread_local host::Index threadIdx{0}, blockIdx{0};
inline thread_local host::Index blockDim{1}, gridDim{1};

inline void __syncthreads() { host::current->all.wait(); }
inline void __syncwarp(unsigned mask = (1ull << HOST_WARP) - 1) {
  if (HOST_WARP > 1) host::current->segment(threadIdx.x, __builtin_popcount(mask)).wait();
}

namespace host {

// Like a launch: blocks of threads, all at once, because those of a grid wait for each other.
template <class Kernel>
void launch(int blocks, int threads, size_t shared_bytes, Kernel kernel) {
  std::vector<std::unique_ptr<host::Block>> memory;
  std::vector<std::thread> running;
  for (int b = 0; b < blocks; ++b) memory.push_back(std::make_unique<Block>(threads, shared_bytes));
  auto work = [&](int b, int t) {
    current = memory[b].get();
    blockIdx.x = b;
    threadIdx.x = t;
    gridDim.x = blocks;
    blockDim.x = threads;
    kernel();
  };
  if (blocks * threads == 1) return work(0, 0);
  for (int b = 0; b < blocks; ++b) {
    for (int t = 0; t < threads; ++t) running.emplace_back(work, b, t);
  }
  for (std::thread& thread : running) thread.join();
}

// Every thread of a segment shows a value, and makes of all of them what `read(slots)` returns.
template <class T, class Read>
auto meet(int width, T value, Read read) {
  if (width == 1) return read([=](int) { return value; });
  Barrier& barrier = current->segment(threadIdx.x, width);
  uint64_t* slots = &current->slots[threadIdx.x / width * width];
  std::memcpy(&slots[threadIdx.x % width], &value, sizeof value);
  barrier.wait();
  auto slot = [=](int lane) {
    T shown;
    std::memcpy(&shown, &slots[lane], sizeof shown);
    return shown;
  };
  auto result = read(slot);
  barrier.wait();
  return result;
}

}  // namespace host

template <class T>
T __shfl_xor_sync(unsigned, T value, int k, int width) {
  return host::meet(width, value, [=](auto slot) { return slot((threadIdx.x ^ k) % width); });
}
template <class T>
T __shfl_sync(unsigned, T value, int lane, int width) {
  return host::meet(width, value, [=](auto slot) { return slot(lane % width); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  const int width = __popc(mask);
  return host::meet(width, value, [=](auto slot) {
    T least = slot(0);
    for (int lane = 1; lane < width; ++lane) least = min(least, slot(lane));
    return least;
  });
}
inline int __reduce_add_sync(unsigned mask, int value) {
  const int width = __popc(mask);
  return host::meet(width, value, [=](auto slot) {
    int sum = 0;
    for (int lane = 0; lane < width; ++lane) sum += slot(lane);
    return sum;
  });
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const int width = __popc(mask);
  return host::meet(width, vote, [=](auto slot) {
    unsigned votes = 0;
    for (int lane = 0; lane < width; ++lane) votes |= static_cast<unsigned>(slot(lane)) << lane;
    return votes;
  });
}

template <class T>
T peek(const T* place) {
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}
template <class T, class U>
T atomicAdd(T* place, U value) {
  return __atomic_fetch_add(place, static_cast<T>(value), __ATOMIC_SEQ_CST);
}
template <class T, class U, class Better>
T replace_if(T* place, U offer, Better better) {
  T value = static_cast<T>(offer), old = __atomic_load_n(place, __ATOMIC_SEQ_CST);
  while (better(value, old) && !__atomic_compare_exchange_n(place, &old, value, false,
                                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}
template <class T, class U>
T atomicMin(T* place, U offer) {
  return replace_if(place, offer, [](T a, T b) { return a < b; });
}
template <class T, class U>
T atomicMax(T* place, U offer) {
  return replace_if(place, offer, [](T a, T b) { return a > b; });
}
inline void add_release(unsigned long long* place, unsigned long long value) {
  __atomic_fetch_add(place, value, __ATOMIC_RELEASE);
}
inline unsigned long long load_acquire(const unsigned long long* place) {
  sched_yield();  // it is called until others get on
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}
