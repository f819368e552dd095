// What kernels/src/auction.cu needs of CUDA, for a host compiler: included before it.
//
// A device thread is a std::thread, a warp is HOST_WARP of them. With HOST_WARP 1 and one thread
// the loops of auction.cu run one after another; with more the barriers, atomics and shuffles
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
inline void __syncwarp() { host::current->segment(threadIdx.x, HOST_WARP).wait(); }
inline void __threadfence() {}  // the atomics below are sequentially consistent
inline void __nanosleep(unsigned) { sched_yield(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int k, int width) {
  host::Barrier& barrier = host::current->segment(threadIdx.x, width);
  std::memcpy(&host::current->slots[threadIdx.x], &value, sizeof value);
  barrier.wait();
  std::memcpy(&value, &host::current->slots[threadIdx.x ^ k], sizeof value);
  barrier.wait();
  return value;
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
