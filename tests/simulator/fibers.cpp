// Fibers, and who of them runs next.

#include "fibers.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simulator.h"

sim_index threadIdx, blockIdx, blockDim, gridDim;

namespace simulator {

Grid grid;

namespace {

constexpr size_t STACK = 128 * 1024;

void (*kernel)(const void*);
const void* kernel_arguments;
jmp_buf scheduler;
uint64_t random_state;
bool stopped, step_back_asked;
uint64_t quiet;  // looks in vain since somebody made progress

// The numbers of the fibers that can run, where each stands there, and the same as bits.
std::vector<int> ready, position;
std::vector<uint64_t> ready_bits;

// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
uint32_t draw() {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>(random_state * 2685821657736338717ull >> 32);
}

Site base() {
  static const Site found = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(&add_region), &info)
               ? reinterpret_cast<Site>(info.dli_fbase) : 0;
  }();
  return found;
}

int first_ready() {
  size_t word = 0;
  while (!ready_bits[word]) ++word;
  return static_cast<int>(64 * word) + __builtin_ctzll(ready_bits[word]);
}

int last_ready() {
  size_t word = ready_bits.size() - 1;
  while (!ready_bits[word]) --word;
  return static_cast<int>(64 * word) + 63 - __builtin_clzll(ready_bits[word]);
}

int choose() {
  int next = ready[draw() % ready.size()];
  const bool any = step_back_asked;
  step_back_asked = false;
  if (grid.options.policy == FALLING_PRIORITIES) {
    for (int id : ready) {
      if (grid.fibers[id].priority > grid.fibers[next].priority) next = id;
    }
  }
  if (grid.options.policy == FIRST_THREAD && !any) next = first_ready();
  if (grid.options.policy == LAST_THREAD && !any) next = last_ready();
  return next;
}

void enter() {
  kernel(kernel_arguments);
  note_progress();
  set_state(*grid.current, DONE);
  leave();
  std::abort();  // nobody makes it ready again
}

void resume(Fiber& fiber) {
  grid.current = &fiber;
  blockIdx = {static_cast<unsigned>(fiber.block), 0, 0};
  threadIdx = {static_cast<unsigned>(fiber.thread), 0, 0};
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
  grid.current = nullptr;
}

void make_fiber(Fiber& fiber, int id, int threads, char* stack,
                const std::shared_ptr<const Ticks>& nothing) {
  fiber.id = id;
  fiber.block = id / threads;
  fiber.thread = id % threads;
  fiber.priority = draw() / 4294967296.0;
  fiber.stack = stack;
  fiber.seen = nothing;
  fiber.state = DONE;
  set_state(fiber, READY);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stack;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  Block& block = grid.blocks[fiber.block];
  block.fibers.push_back(&fiber);
  block.exchanges.resize(fiber.thread / WARP + 1);
}

}  // namespace

void set_state(Fiber& fiber, State state) {
  const uint64_t bit = 1ull << fiber.id % 64;
  if (fiber.state == READY && state != READY) {
    const int last = ready.back();
    ready[position[fiber.id]] = last;
    position[last] = position[fiber.id];
    ready.pop_back();
    ready_bits[fiber.id / 64] &= ~bit;
  } else if (fiber.state != READY && state == READY) {
    position[fiber.id] = static_cast<int>(ready.size());
    ready.push_back(fiber.id);
    ready_bits[fiber.id / 64] |= bit;
  }
  fiber.state = state;
}

void leave() {
  if (_setjmp(grid.current->place) == 0) _longjmp(scheduler, 1);
}

void step_back() {
  grid.current->priority -= 2;
  step_back_asked = true;
  leave();
}

void stop() {
  stopped = true;
  leave();
  std::abort();
}

void let_others_run() {
  if (grid.options.limit && ++grid.accesses > grid.options.limit) {
    report("endless: more than " + std::to_string(grid.options.limit) + " accesses");
    stop();
  }
  // The policies of the first and the last thread switch only where a thread waits.
  if (grid.options.policy >= FIRST_THREAD || draw() >= grid.options.chance * 4294967296.0) return;
  grid.current->priority -= 2;
  leave();
}

void note_progress() {
  quiet = 0;
  if (grid.current) grid.current->looks = 0;
}

void note_waiting(Site site) {
  if (++quiet > 10'000 + 200 * grid.fibers.size()) {
    report("deadlock: a thread looks in vain " + place(site));
    stop();
  }
  // Who looks again and again without doing anything waits for another thread.
  if (++grid.current->looks % 4 == 0) step_back();
}

void report(const std::string& text) { ++grid.reports[text]; }

std::string place(Site site) {
  char text[32];
  std::snprintf(text, sizeof text, "@%lx", static_cast<unsigned long>(site - base() - 1));
  return text;
}

bool is_left_out(Site site) {
  ++grid.sites[site - base()];
  return site - base() == grid.options.left_out;
}

void run_grid(int blocks, int threads, size_t shared_bytes, void (*entry)(const void*),
              const void* arguments) {
  kernel = entry;
  kernel_arguments = arguments;
  random_state = grid.options.seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
  stopped = step_back_asked = false;
  quiet = grid.accesses = 0;
  const size_t count = static_cast<size_t>(blocks) * threads;
  grid.reports.clear();
  grid.sites.clear();
  grid.blocks.assign(blocks, Block());
  grid.fibers.assign(count, Fiber());
  ready.clear();
  position.assign(count, 0);
  ready_bits.assign((count + 63) / 64, 0);
  start_memory();
  start_atomics();

  // A gap after each block's shared memory shows what reaches over its end.
  const size_t each = (shared_bytes + 64 + 63) / 64 * 64;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(64, blocks * each));
  std::memset(memory, 0xCD, blocks * each);
  auto* stacks = static_cast<char*>(std::aligned_alloc(64, count * STACK));
  for (int b = 0; b < blocks; ++b) {
    grid.blocks[b].shared = memory + b * each;
    add_region(memory + b * each, shared_bytes, SHARED, "shared memory");
  }
  const auto nothing = std::make_shared<const Ticks>(count, 0);
  for (size_t f = 0; f < count; ++f) {
    make_fiber(grid.fibers[f], static_cast<int>(f), threads, stacks + f * STACK, nothing);
  }
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  while (!ready.empty() && !stopped) resume(grid.fibers[choose()]);
  if (!stopped) report_waiting();
  end_memory();
  std::free(stacks);
  std::free(memory);
}

}  // namespace simulator

// For ctypes.
extern "C" {

void sim_options(uint64_t seed, int policy, double chance, uint64_t limit, uint64_t left_out) {
  simulator::grid.options = {seed, policy, chance, limit, left_out};
}

// The reports of the last launch as lines "count<TAB>text", where @hex are offsets for addr2line.
uint64_t sim_reports(char* out, uint64_t room) {
  std::string text;
  for (const auto& [line, count] : simulator::grid.reports) {
    text += std::to_string(count) + "\t" + line + "\n";
  }
  std::strncpy(out, text.c_str(), room);
  return text.size();
}

// The offsets of all barriers and fences that the last launch reached; returns how many there are.
uint64_t sim_sites(uint64_t* out, uint64_t room) {
  uint64_t count = 0;
  for (const auto& [site, times] : simulator::grid.sites) {
    if (count < room) out[count] = site;
    ++count;
  }
  return count;
}
}
