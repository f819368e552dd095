// A CUDA grid on one host thread, and what it remembers to find faults.
//
//   fibers.cpp   every device thread is a fiber with a stack of its own; a scheduler lets another
//                one run before any access to memory, atomic, barrier or shuffle
//   memory.cpp   regions, and for each four bytes who accessed them last: races, reads of what was
//                never written, accesses outside of every region
//   meetings.cpp barriers and exchanges in a warp, and who waits in vain
//   atomics.cpp  atomics and fences
//   device.h     what a kernel calls; simulator.h: what a host program calls
//
// Order is kept by vector clocks (Lamport; Flanagan and Freund, "FastTrack", PLDI 2009). As in PTX,
// barriers order the threads that meet, and __syncwarp its lanes; other exchanges in a warp order
// no memory; a fence before an atomic and one after reading it, or release and acquire, order two
// threads. Two accesses, one of them a write and not both atomic, that are not ordered are a race.

#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "device.h"

namespace simulator {

using Tick = uint32_t;
using Ticks = std::vector<Tick>;  // of every thread, the last tick that happened before
using Site = uintptr_t;           // a return address in the kernel

enum Policy { RANDOM, FALLING_PRIORITIES, FIRST_THREAD, LAST_THREAD };
enum State { READY, WAITING, DONE };

struct Fiber {
  int id = 0, block = 0, thread = 0;
  State state = READY;
  double priority = 0;
  uint64_t looks = 0;  // at what others change, since it did something itself

  char* stack = nullptr;
  bool started = false;
  ucontext_t start;
  jmp_buf place;

  // Threads that met share what they have seen, each but for its own tick.
  std::shared_ptr<const Ticks> seen;
  Tick now = 1;
  std::shared_ptr<const Ticks> released;  // seen at its last fence
  Tick released_at = 0;
  Ticks pending;  // read by relaxed atomics; seen from the next fence on

  // The meeting where it waits or that it left last.
  int meeting = SIM_SYNC, detail = 0, width = 0;
  unsigned mask = 0;      // the lanes that meet, or
  bool at_block = false;  // all threads of the block
  Site site = 0;
  uint64_t given = 0, result = 0;

  Tick tick_of(int other) const { return other == id ? now : (*seen)[other]; }
  int lane() const { return thread % WARP; }
};

struct Block {
  unsigned char* shared = nullptr;
  std::vector<Fiber*> fibers;
  std::vector<Fiber*> arrived;                                     // at a barrier of the block
  std::vector<std::map<unsigned, std::vector<Fiber*>>> exchanges;  // of each warp, by mask
};

struct Options {
  uint64_t seed = 1;
  int policy = RANDOM;
  double chance = 0.1;  // of letting another thread run before an access
  uint64_t limit = 0;   // of accesses
  Site left_out = 0;    // offset of a barrier or fence that shall do nothing
};

// One launch; there is never more than one.
struct Grid {
  Options options;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  Fiber* current = nullptr;
  uint64_t accesses = 0;
  std::map<std::string, long> reports;
  std::map<Site, long> sites;  // offsets of barriers and fences, and how often they were reached
};
extern Grid grid;

// fibers.cpp
void let_others_run();     // perhaps
void step_back();          // behind all others: this thread can only wait
void leave();              // until somebody makes the thread ready
[[noreturn]] void stop();  // the whole launch: nothing sensible can follow
void set_state(Fiber& fiber, State state);
void report(const std::string& text);
std::string place(Site site);  // as @hex, for addr2line
bool is_left_out(Site site);   // counts the site too
void note_progress();          // something happened that a waiting thread may wait for
void note_waiting(Site site);  // a thread looks whether something has happened

// memory.cpp
enum Kind { READ, WRITE, ATOMIC, ATOMIC_READ };
void access(const void* address, size_t bytes, Kind kind, Site site);
void start_memory();
void end_memory();

// meetings.cpp
void report_waiting();
void see(Fiber& fiber, const Ticks& ticks);

// atomics.cpp
void start_atomics();

}  // namespace simulator

#define SITE reinterpret_cast<simulator::Site>(__builtin_return_address(0))
