// Atomics and fences. A release publishes what its thread has seen at the address of the atomic; an
// acquire of that address sees it. Relaxed atomics do so from the fence before to the fence after.

#include <algorithm>
#include <cstring>

#include "fibers.h"

namespace simulator {
namespace {

std::unordered_map<const void*, Ticks> published;

void merge(Ticks& into, const Ticks& from) {
  into.resize(from.size());
  for (size_t t = 0; t < from.size(); ++t) into[t] = std::max(into[t], from[t]);
}

void acquire(const void* where, int order) {
  const auto found = published.find(where);
  if (found == published.end()) return;
  if (order & SIM_ACQUIRE) see(*grid.current, found->second);
  else merge(grid.current->pending, found->second);
}

void release(const void* where, int order) {
  Fiber& fiber = *grid.current;
  if (order & SIM_RELEASE) {
    fiber.released = fiber.seen;
    fiber.released_at = fiber.now++;
  }
  if (!fiber.released) return;
  Ticks& ticks = published[where];
  merge(ticks, *fiber.released);
  ticks[fiber.id] = std::max(ticks[fiber.id], fiber.released_at);
}

template <class T>
T apply(int atomic, T old, T value, T expected) {
  switch (atomic) {
    case SIM_ADD: return old + value;
    case SIM_MIN: return std::min(old, value);
    case SIM_MAX: return std::max(old, value);
    case SIM_EXCHANGE: return value;
    case SIM_SWAP_IF_EQUAL: return old == expected ? value : old;
  }
  if constexpr (std::is_integral_v<T>) return atomic == SIM_AND ? old & value : old | value;
  std::abort();
}

template <class T>
uint64_t change(int atomic, void* where, uint64_t bits, uint64_t expected) {
  T old;
  std::memcpy(&old, where, sizeof old);
  const T now = apply<T>(atomic, old, sim_value<T>(bits), sim_value<T>(expected));
  std::memcpy(where, &now, sizeof now);
  return sim_bits(old);
}

}  // namespace

void start_atomics() { published.clear(); }

}  // namespace simulator

using namespace simulator;

extern "C" {

void sim_threadfence() {
  if (is_left_out(SITE)) return;
  let_others_run();
  Fiber& fiber = *grid.current;
  if (!fiber.pending.empty()) see(fiber, fiber.pending);
  fiber.pending.clear();
  fiber.released = fiber.seen;
  fiber.released_at = fiber.now++;
}

void sim_nanosleep(unsigned) {  // it waits for somebody: let the others run first
  note_waiting(SITE);
  step_back();
}

uint64_t sim_atomic(int atomic, int type, void* where, uint64_t bits, uint64_t expected,
                    int order) {
  let_others_run();
  access(where, type == SIM_INT || type == SIM_UNSIGNED || type == SIM_FLOAT ? 4 : 8, ATOMIC, SITE);
  acquire(where, order);
  release(where, order);
  switch (type) {
    case SIM_INT: return change<int>(atomic, where, bits, expected);
    case SIM_UNSIGNED: return change<unsigned>(atomic, where, bits, expected);
    case SIM_LONG: return change<long long>(atomic, where, bits, expected);
    case SIM_UNSIGNED_LONG: return change<unsigned long long>(atomic, where, bits, expected);
    case SIM_FLOAT: return change<float>(atomic, where, bits, expected);
    default: return change<double>(atomic, where, bits, expected);
  }
}

uint64_t sim_load(const void* where, int bytes, int order) {
  let_others_run();
  access(where, bytes, ATOMIC_READ, SITE);
  acquire(where, order);
  uint64_t value = 0;
  std::memcpy(&value, where, bytes);
  return value;
}
}
